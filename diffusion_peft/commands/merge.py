"""`diffusion_peft merge`: adapters written into the base's weights, a whole pipeline for plain diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from diffusion_peft.use.adapters import keep_off, split_scale
from diffusion_peft.use.merged import merged_pipeline, new_folder, save_pipeline
from diffusion_peft.use.run import combine
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command


@command("diffusion")
def merge_(*, out: str, run: str | None = None, adapter: list[str] | None = None, scale: float = 1.0,
           base: str | None = None, dtype: Literal["float32", "float16", "bfloat16"] = "float32",
           allow_pickle: bool = False, partial: bool = False) -> Path:  # fmt: skip
    """Write adapters into the base's weights: a whole pipeline folder that plain diffusers loads.

    Args:
        out: The folder to write.
        run: A run folder.
        adapter: PATH:SCALE, repeated, in place of a run or besides.
        scale: Weight of the run's adapter.
        base: Another base than the run's.
        dtype: Of the weights that are written.
        allow_pickle: Read pickles (.pt, .bin), tensors and plain values only.
        partial: Go without those parts of a LoRA file that find no place.
    """
    adapters = ([(run, scale)] if run else []) + [split_scale(text) for text in adapter or []]
    if not adapters:
        raise PeftError("merge needs --run or --adapter.")
    target = new_folder(out)
    keep_off(target, [path for path, _ in adapters])
    loaded = combine(adapters, base, allow_pickle=allow_pickle, partial=partial)
    return save_pipeline(merged_pipeline(loaded), target, dtype)
