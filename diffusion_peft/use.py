"""`diffusion_peft sample | export | merge`: what is done with finished runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion_peft.bases import Base, quiet_loading
from diffusion_peft.custom_diffusion_files import write_concept
from diffusion_peft.draw import Drawing, grid
from diffusion_peft.embedding_files import write_embedding
from diffusion_peft.formats import export_adapter, export_layers, list_formats
from diffusion_peft.personalize.concepts import compress as compressed
from diffusion_peft.run import Run, combine
from diffusion_peft.samples import png_of
from peft_core import merge, remove
from peft_core.adapter_file import write_files
from peft_core.attach import Adaptation, pick
from peft_core.command import command
from peft_core.errors import PeftError, nearest
from peft_core.runs import tell

FORMATS = {
    "diffusers_lora": "pytorch_lora_weights.safetensors for load_lora_weights (lora, dora)",
    "kohya": "for A1111, ComfyUI, sd-scripts and LyCORIS (lora, dora, loha, lokr)",
    "embeddings": "new tokens for load_textual_inversion, a file each",
    "a1111_embeddings": "new tokens for A1111 and ComfyUI, a file each",
    "custom_diffusion": "pytorch_custom_diffusion_weights.safetensors for unet.load_attn_procs",
}


@command("diffusion")
def sample(
    *,
    prompt: list[str],
    run: str | None = None,
    adapter: list[str] | None = None,
    base: str | None = None,
    out: str | None = None,
    count: int = 4,
    seed: int = 0,
    scale: float = 1.0,
    negative: str = "",
    steps: int = 30,
    guidance: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    at_once: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    allow_pickle: bool = False,
) -> Path:
    """Draw pictures with a run, or with several adapters on one base.

    Args:
        prompt: One prompt or several.
        run: A run folder.
        adapter: PATH:SCALE, repeated: run folders, LoRA files, embedding files.
        base: Another base than the run's; needed where the adapters are files alone.
        out: Folder for the pictures; by default RUN/drawn, else drawn.
        count: Pictures a prompt, with seeds seed, seed + 1, …
        seed: Of the first picture.
        scale: Weight of the run's adapter: 0 the base, 1 as trained, any number for a slider.
        negative: Negative prompt.
        steps: Denoising steps.
        guidance: Weight of the prompt.
        height: In pixels; the base's by default.
        width: In pixels.
        at_once: Pictures in one batch.
        dtype: Of the weights.
        allow_pickle: Read .pt and .bin files, tensors and plain values only.
    """
    adapters = ([(run, scale)] if run else []) + [split_scale(text) for text in adapter or []]
    if not adapters and base is None:
        raise PeftError("sample needs --run, --adapter or --base: see `sample --help`.")
    if count < 1 or steps < 1:
        raise PeftError(f"--count and --steps must be at least 1, not {count} and {steps}.")
    loaded = combine(adapters, base, dtype, allow_pickle)
    rows = loaded.sample(prompt, count, seed, negative, Drawing(steps, guidance, height, width, at_once))
    folder = Path(out or (Path(run) / "drawn" if run else "drawn")).expanduser()
    files = {f"{r:02d}-{seed + n}.png": png_of(image) for r, row in enumerate(rows) for n, image in enumerate(row)}
    write_files(folder, files | {"grid.png": png_of(grid(rows))})
    print(f"{len(files)} pictures in {folder}; all of them in {folder / 'grid.png'}, a row a prompt")
    return folder


def split_scale(text: str) -> tuple[str, float]:
    """PATH:SCALE, or PATH alone at 1.

    Raises:
        PeftError: nothing at PATH.
    """
    path, colon, number = text.rpartition(":")
    try:
        found = (path, float(number)) if colon else (text, 1.0)
    except ValueError:
        found = (text, 1.0)
    if not Path(found[0]).expanduser().exists():
        raise PeftError(
            f"there is no adapter {found[0]}: give a run folder or a file, with :SCALE after it if you like."
        )
    return found


@command("diffusion")
def export(
    *,
    run: str,
    format: str,
    out: str | None = None,
    compress: float | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> Path:
    """Write a run's adapter as a file that other tools load.

    Args:
        run: The run folder.
        format: diffusers_lora, kohya, embeddings, a1111_embeddings or custom_diffusion (`list formats`).
        out: A .safetensors file or a folder; by default RUN/export.
        compress: Write a custom_diffusion run as LoRA layers that keep this share of the singular values, e.g. 0.6.
        dtype: Of the tensors of a LoRA file.
    """
    if format not in FORMATS:
        raise PeftError(f'unknown format "{format}"{nearest(format, FORMATS)} (known: {", ".join(FORMATS)}).')
    if compress is not None and format not in list_formats():
        raise PeftError(f"--compress makes LoRA layers: it goes with --format {' or '.join(list_formats())}.")
    loaded = combine([(run, 1.0)])
    target = Path(out or Path(run) / "export").expanduser()
    if format in list_formats():
        if compress is None:
            models = loaded.unet, loaded.base.text_encoders
            file = export_adapter(*models, target, format, name=_weights_name(loaded), dtype=getattr(torch, dtype))
        else:
            adaptation = _custom_diffusion(loaded, run)
            after = _trained(loaded)
            layers = compressed(adaptation.originals, after, compress)
            file = export_layers({"unet": loaded.unet}, {"unet": layers}, target, format, getattr(torch, dtype))
        if loaded.tokens:
            tell(f"note: the new tokens {', '.join(loaded.tokens)} are not in it: --format embeddings writes them.")
    elif format == "custom_diffusion":
        _custom_diffusion(loaded, run)
        file = write_concept(loaded.unet, target, _trained(loaded))
    else:
        file = _write_tokens(loaded, target, format == "a1111_embeddings")
    print(f"{file}: {FORMATS[format]}")
    return file


def _custom_diffusion(loaded: Run, run: str) -> Adaptation:
    adaptation = pick(loaded.unet, _weights_name(loaded))[0]
    if adaptation.method.name != "custom_diffusion":
        raise PeftError(f"{run} was trained with {adaptation.method.name}, not with custom_diffusion.")
    return adaptation


def _trained(loaded: Run) -> dict[str, torch.Tensor]:
    parameters = dict(loaded.unet.named_parameters())
    return {key: parameters[key].detach() for key in pick(loaded.unet, _weights_name(loaded))[0].trained}


def _weights_name(run: Run) -> str:
    """The adaptation that changes weights.

    Raises:
        PeftError: the run has new tokens alone.
    """
    found = [name for model in run.models.values() if "_peft_record" in model.__dict__
             for name in model.__dict__["_peft_record"].adaptations if not name.endswith("__tokens")]  # fmt: skip
    if not found:
        raise PeftError("this run trained new tokens alone: use --format embeddings or a1111_embeddings.")
    return found[0]


def _write_tokens(run: Run, target: Path, a1111: bool) -> Path:
    vectors = run.vectors()
    if not vectors:
        raise PeftError("this run has no new tokens: they come with --placeholder.")
    if target.suffix == ".safetensors" and len(vectors) > 1:
        raise PeftError(f"this run has {len(vectors)} new tokens, a file each: give --out a folder.")
    for token, values in vectors.items():
        name = "".join(c for c in token if c.isalnum() or c in "-_") or "token"
        file = target if target.suffix == ".safetensors" else target / f"{name}.safetensors"
        write_embedding(file, token, values, a1111)
    return target


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
