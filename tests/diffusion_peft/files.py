"""Adapted tiny pipelines to write files of, and when two pictures are the same."""

from typing import Any

import torch

from diffusion_peft.formats import export_adapter
from peft_core import adapt
from tests.diffusion_peft.pipelines import stable_diffusion, texts, train

EVERYTHING = ("attn", "cross_attn", "mlp", "proj_io", "conv", "time", "time_embed")
TEXT = {"attention": ("attn",), "q and v": ("q", "v"), "mlp": ("mlp",), "one layer": ("k",)}
SEEN = 1e-3


def adapted(name: str, unet: dict[str, Any] | None, text: dict[str, Any] | None) -> Any:
    pipeline = stable_diffusion(name)
    if unet is not None:
        adapt(pipeline.unet, **unet)
        train(pipeline.unet)
    if text is not None:
        for model in texts(pipeline):
            adapt(model, **text)
            train(model)
    return pipeline


def lora(targets: Any = EVERYTHING, **more: Any) -> dict[str, Any]:
    return {"method": "lora", "rank": 3, "alpha": 5.0, "targets": targets} | more


def export(pipeline: Any, path, format: str):
    return export_adapter(pipeline.unet, texts(pipeline), path, format)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > SEEN)


def short(value: Any) -> str:
    return (
        "-".join(str(v) for k, v in value.items() if k not in ("targets", "alpha"))
        if isinstance(value, dict)
        else str(value)
    )
