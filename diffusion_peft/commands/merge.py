"""`diffusion_peft merge`: adapters written into the base's weights, or made one LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from diffusion_peft.use.adapters import keep_off, split_scale
from diffusion_peft.use.merged import merged_pipeline, new_folder, save_pipeline
from diffusion_peft.use.run import combine
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.values import Count, Range, Seed


@command("diffusion")
def merge_(*, out: str | None = None, into: str | None = None, run: str | None = None, adapter: list[str] | None = None,
           scale: float = 1.0, base: str | None = None,
           how: Literal["cat", "svd", "ties", "dare", "dare_ties", "magnitude"] = "cat", rank: Count | None = None,
           density: Annotated[float, Range(above=0, most=1)] = 0.5, seed: Seed = 0,
           format: Literal["diffusers_lora", "kohya"] = "diffusers_lora",
           dtype: Literal["float32", "float16", "bfloat16"] = "float32", allow_pickle: bool = False,
           partial: bool = False) -> Path:  # fmt: skip
    """Write adapters into the base's weights, a whole pipeline folder that plain diffusers loads; or make them one LoRA file.

    Args:
        out: The pipeline folder to write.
        into: The LoRA file to write, in its place.
        run: A run folder.
        adapter: PATH:SCALE, repeated, in place of a run or besides.
        scale: Weight of the run's adapter.
        base: Another base than the run's.
        how: Of --into: cat, exactly, the ranks side by side; svd, the nearest of --rank; ties, dare, dare_ties, magnitude: of
            changes that are trimmed, or dropped at random, first.
        rank: Of the layers of --into; by default the largest of the adapters'.
        density: The share of entries that ties, dare and magnitude keep.
        seed: Of what dare drops.
        format: Of --into.
        dtype: Of the weights that are written.
        allow_pickle: Read pickles (.pt, .bin), tensors and plain values only.
        partial: Go without those parts of a LoRA file that find no place.
    """
    adapters = ([(run, scale)] if run else []) + [split_scale(text) for text in adapter or []]
    if not adapters:
        raise PeftError("merge needs --run or --adapter.")
    if out is not None and into is not None:
        raise PeftError(
            "--out is a whole pipeline, --into one LoRA file: give merge one of them, and run it twice for both."
        )
    if out is None and into is None:
        raise PeftError("merge needs --out, a folder for the whole pipeline, or --into, one LoRA file.")
    if into is not None:
        from diffusion_peft.use.joined import join_into

        keep_off(Path(into), [path for path, _ in adapters])
        loaded = combine([(path, 1.0) for path, _ in adapters], base, allow_pickle=allow_pickle, partial=partial)
        file = join_into(loaded, [weight for _, weight in adapters], into, format, dtype, how, rank, density, seed)
        print(f"{file}: {len(adapters)} adapter{'s' * (len(adapters) > 1)} in one LoRA file")
        return file
    target = new_folder(str(out))
    keep_off(target, [path for path, _ in adapters])
    loaded = combine(adapters, base, allow_pickle=allow_pickle, partial=partial)
    return save_pipeline(merged_pipeline(loaded), target, dtype)
