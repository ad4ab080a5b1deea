"""Tiny pipelines under a control, trained at once, and pictures that they draw."""

from typing import Any

import torch
from torch import Tensor

from diffusion_peft.control import set_condition
from peft_core import adapt
from tests.diffusion_peft.pipelines import stable_diffusion, train

METHODS: dict[str, dict[str, Any]] = {
    "controlnet": {"shrink": 1},
    "control_lora": {"shrink": 1, "rank": 2, "alpha": 3.0},
    "controlnext": {"shrink": 1, "width": 8},
    "t2i_adapter": {"shrink": 1},
    "ip_adapter": {"width": 6},
    "gligen": {},
}
PLUS = {"width": 6, "plus": True}
BOXES = [[0.1, 0.2, 0.6, 0.7], [0.5, 0.5, 1.0, 0.9]]
PHRASES = ["a red star", "a dog"]


def controlled(name: str, method: str, **hyper: Any) -> Any:
    pipeline = stable_diffusion(name)
    adapt(pipeline.unet, method, **(METHODS[method] | hyper))
    train(pipeline.unet)
    pipeline.unet.eval()
    return pipeline


def map_picture() -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(8))


def features(plus: bool = False) -> Tensor:
    return torch.randn(1, *([5] if plus else []), 6, generator=torch.Generator().manual_seed(9))


def grounding(pipeline: Any) -> dict[str, Tensor]:
    from diffusion_peft.control.grounding import encode_boxes

    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    tokenizers = [getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2")]
    return encode_boxes([e for e in encoders if e], [t for t in tokenizers if t], BOXES, PHRASES)


def give(pipeline: Any, plus: bool = False, **more: Tensor) -> None:
    seen = features(plus)
    given = {"picture": map_picture(), "features": seen, "null": torch.zeros_like(seen)} | more
    if "gligen" in pipeline.unet.__dict__["_peft_record"].adaptations:
        given |= grounding(pipeline)
    set_condition(pipeline.unet, given)
