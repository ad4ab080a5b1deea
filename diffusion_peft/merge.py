"""`diffusion_peft merge`: adapters written into the base's weights, a whole pipeline for plain diffusers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion_peft.bases import Base
from diffusion_peft.loading import quiet_loading
from diffusion_peft.run import Run, combine
from diffusion_peft.sample import split_scale
from peft_core import merge, remove
from peft_core.command import command
from peft_core.errors import PeftError


@command("diffusion")
def merge_(*, out: str, run: str | None = None, adapter: list[str] | None = None, scale: float = 1.0,
           base: str | None = None, dtype: Literal["float32", "float16", "bfloat16"] = "float32",
           allow_pickle: bool = False) -> Path:  # fmt: skip
    """Write adapters into the base's weights: a whole pipeline folder that plain diffusers loads.

    Args:
        out: The folder to write.
        run: A run folder.
        adapter: PATH:SCALE, repeated, in place of a run or besides.
        scale: Weight of the run's adapter.
        base: Another base than the run's.
        dtype: Of the weights that are written.
        allow_pickle: Read .pt and .bin files, tensors and plain values only.
    """
    adapters = ([(run, scale)] if run else []) + [split_scale(text) for text in adapter or []]
    if not adapters:
        raise PeftError("merge needs --run or --adapter.")
    target = new_folder(out)
    loaded = combine(adapters, base, allow_pickle=allow_pickle)
    return save_pipeline(merged_pipeline(loaded), target, dtype)


def new_folder(out: str | Path) -> Path:
    """Raises PeftError: there is something already."""
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PeftError(f"{target} exists already: give --out a new folder.")
    return target


def save_pipeline(pipeline: Any, out: Path, dtype: str = "float32") -> Path:
    """Writes the folder whole or not at all."""
    target = new_folder(out)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet_loading():
        if dtype != "float32":
            pipeline.to(getattr(torch, dtype))
        pipeline.save_pretrained(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)
    print(
        f"{target} is a whole pipeline; plain diffusers loads it:\n  DiffusionPipeline.from_pretrained({str(target)!r})"
    )
    return target


def merged_pipeline(run: Run) -> Any:
    """The run's pipeline with stock classes and merged weights, its new tokens in tokenizers and text encoders.

    Raises:
        NotMergeable: with the method and the reason.
    """
    vectors = run.vectors()
    for model in run.models.values():
        if "_peft_record" not in model.__dict__:
            continue
        for name in list(model.__dict__["_peft_record"].adaptations):
            if name.endswith("__tokens"):
                remove(model, name)
            else:
                merge(model, name)
    for number, encoder in enumerate(run.base.text_encoders):
        _write_rows(run.base, number, encoder, {token: values[number] for token, values in vectors.items()})
    return run.base.pipeline()


@torch.no_grad()
def _write_rows(base: Base, number: int, encoder: Any, vectors: dict[str, torch.Tensor]) -> None:
    tokenizer = base.tokenizers[number]
    table = encoder.get_input_embeddings().weight
    for token, values in vectors.items():
        first = tokenizer.convert_tokens_to_ids(token)
        if first + len(values) > len(table):
            encoder.resize_token_embeddings(first + len(values), mean_resizing=False)
            table = encoder.get_input_embeddings().weight
        table[first : first + len(values)] = values.to(table)
