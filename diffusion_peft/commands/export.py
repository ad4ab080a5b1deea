"""`diffusion_peft export`: a run's adapter as files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch

from diffusion_peft.files.custom_diffusion import write_concept
from diffusion_peft.files.embeddings import write_embedding
from diffusion_peft.files.halves import Half, check_halves, half_of
from diffusion_peft.files.layers import layers_of
from diffusion_peft.formats import export_adapter, export_layers, list_formats
from diffusion_peft.use.adapters import keep_off
from diffusion_peft.use.run import Run, combine
from peft_core.attach import Adaptation, pick
from peft_core.errors import PeftError, nearest
from peft_core.jobs.cli.command import command
from peft_core.jobs.runs.process import tell
from peft_core.values import Range

FORMATS = {
    "diffusers": "what stock diffusers loads of such a run: LoRA layers, a control, custom diffusion's weights or new tokens",
    "stock": "the same as diffusers",
    "diffusers_lora": "pytorch_lora_weights.safetensors for load_lora_weights (lora, dora)",
    "kohya": "for LyCORIS (lora, dora, loha, lokr), A1111 and ComfyUI (lora, loha, lokr), sd-scripts (lora)",
    "embeddings": "new tokens for load_textual_inversion, a file each",
    "a1111_embeddings": "new tokens for A1111 and ComfyUI, a file each",
    "custom_diffusion": "pytorch_custom_diffusion_weights.safetensors for unet.load_attn_procs",
    "control": "a control as diffusers loads it: a ControlNetModel or T2IAdapter folder, an IP-Adapter file, a GLIGEN UNet …",
}


FORMS = {
    "lora": "plain LoRA, which all of these read alike: A1111, ComfyUI, sd-scripts, LyCORIS and diffusers",
    "diff": "whole differences of weights, for A1111, ComfyUI and LyCORIS",
}


@command("diffusion")
def export(
    *,
    run: str,
    format: str,
    out: str | None = None,
    as_: Literal["own", "lora", "diff"] = "own",
    compress: Annotated[float, Range(above=0, most=1)] | None = None,
    half: Half | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> Path:
    """Write a run's adapter as a file that other tools load.

    Args:
        run: The run folder.
        format: diffusers, what stock diffusers loads of such a run; diffusers_lora, kohya, embeddings, a1111_embeddings,
            custom_diffusion or control (`list formats`).
        out: A .safetensors file or a folder; by default RUN/export.
        as_: Of a LoRA file: own, the method's own factors; lora, what it does to the weights as plain LoRA, by SVD; diff,
            whole differences of the weights (kohya).
        compress: With --as lora, which it implies, keep this share of the singular values, e.g. 0.6.
        half: Of a LoRA of SDXL, its content or its style alone, as B-LoRA has them.
        dtype: Of the tensors of a LoRA file.
    """
    if format not in FORMATS:
        raise PeftError(f'unknown format "{format}"{nearest(format, FORMATS)} (known: {", ".join(FORMATS)}).')
    if format in ("diffusers", "stock"):
        format = _of_kind(combine([(run, 1.0)]))
    for flag, given in (("--compress", compress is not None), ("--as", as_ != "own"), ("--half", half is not None)):
        if given and format not in list_formats():
            raise PeftError(f"{flag} makes LoRA layers: it goes with --format {' or '.join(list_formats())}.")
    if half is not None and (as_ != "own" or compress is not None):
        raise PeftError("--half writes LoRA layers as they are: leave --as and --compress out.")
    if compress is not None and as_ == "diff":
        raise PeftError("--compress shortens LoRA layers: it goes with --as lora, not diff.")
    form = "lora" if compress is not None else as_
    loaded = combine([(run, 1.0)])
    target = Path(out or Path(run) / "export").expanduser()
    if target.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise PeftError(
            f"--out {target}: what is written is safetensors; give a folder, or a name that ends in .safetensors."
        )
    keep_off(target, [run])
    if half is not None:
        check_halves(loaded.base.kind, loaded.base.name)
        layers = half_of(layers_of(loaded.unet, _weights_name(loaded)), half, run)
        file = export_layers({"unet": loaded.unet}, {"unet": layers}, target, format, getattr(torch, dtype))
    elif format in list_formats():
        _check_whole(loaded, run)
        file = export_adapter(
            loaded.unet, loaded.base.text_encoders, target, format, name=_weights_name(loaded),
            dtype=getattr(torch, dtype), as_=form, compress=1.0 if compress is None else compress,
        )  # fmt: skip
        if loaded.tokens:
            tell(f"note: the new tokens {', '.join(loaded.tokens)} are not in it: --format embeddings writes them.")
    elif format == "control":
        file = _write_control(loaded, run, target, dtype)
    elif format == "custom_diffusion":
        _custom_diffusion(loaded, run)
        file = write_concept(loaded.unet, target, _trained(loaded))
    else:
        file = _write_tokens(loaded, target, format == "a1111_embeddings")
    print(f"{file}: {FORMS.get(form, FORMATS[format])}")
    return file


def _of_kind(loaded: Run) -> str:
    """The format that stock diffusers loads a run like this from."""
    if loaded.controls:
        return "control"
    found = [name for name in _adaptations(loaded) if not name.endswith("__tokens")]
    if not found:
        return "embeddings"
    adaptation = pick(loaded.unet, found[0])[0]
    return "custom_diffusion" if adaptation.trained and adaptation.method.keeps_originals else "diffusers_lora"


def _check_whole(loaded: Run, run: str) -> None:
    """Raises PeftError: a LoRA file would hold a part of what was trained."""
    own = {name for name in _adaptations(loaded) if not name.endswith("__tokens")}
    if len(own) > 1:
        rest = ", ".join(sorted(name.partition("__")[2] for name in own - {_weights_name(loaded)}))
        raise PeftError(
            f"{run} trained {rest} besides, which a LoRA file cannot hold: `diffusion_peft merge --run {run} --out FOLDER` "
            "writes the whole pipeline."
        )


def _adaptations(run: Run) -> list[str]:
    return [
        name
        for model in run.models.values()
        if "_peft_record" in model.__dict__
        for name in model.__dict__["_peft_record"].adaptations
    ]


def _write_control(loaded: Run, run: str, target: Path, dtype: str) -> Path:
    from diffusion_peft.control.files import write_control

    if not loaded.controls:
        raise PeftError(f"{run} was trained with {_weights_name(loaded).partition('__')[2]}, which is no control.")
    (use,) = loaded.controls
    (adaptation,) = pick(loaded.unet, use.name)
    print(f"{adaptation.method.name}: {adaptation.method.file}")  # type: ignore[attr-defined]
    return write_control(loaded.unet, target, use.name, getattr(torch, dtype))


def _custom_diffusion(loaded: Run, run: str) -> Adaptation:
    adaptation = pick(loaded.unet, _weights_name(loaded))[0]
    if not adaptation.trained or not adaptation.method.keeps_originals:
        raise PeftError(
            f"{run} was trained with {adaptation.method.name}, not with custom_diffusion or another method that trains weights "
            "of cross attention whole."
        )
    return adaptation


def _trained(loaded: Run) -> dict[str, torch.Tensor]:
    parameters = dict(loaded.unet.named_parameters())
    return {key: parameters[key].detach() for key in pick(loaded.unet, _weights_name(loaded))[0].trained}


def _weights_name(run: Run) -> str:
    """The adaptation that changes weights.

    Raises:
        PeftError: the run has new tokens alone.
    """
    found = [name for name in _adaptations(run) if not name.endswith("__tokens")]
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
