"""A pipeline with its adapter merged, written as a stock diffusers folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from diffusion_peft.base.bases import Base
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.use.run import Run
from peft_core import dequantise, merge, remove
from peft_core.errors import PeftError


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
        dequantise(model)
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
