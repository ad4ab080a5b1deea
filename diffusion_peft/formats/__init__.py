"""LoRA files of other tools: written from adapted models, read into stock ones. One file a format, named as the format.

A format's file has FILE_NAME, `write(parts) -> (tensors, header)`, `notes(parts)` (what is to be said of readers),
`claims(keys) -> bool` and `read(source) -> (layers, unmatched keys)`; see `Parts` and `Source`.
"""

import importlib
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from diffusion_peft.base.families import family_of, likely, part_of
from diffusion_peft.files.embeddings import bundled
from diffusion_peft.files.layers import Layer, chosen, fill, layers_of, misfit
from diffusion_peft.files.source import Content, Parts, Source, open_content, open_source
from diffusion_peft.files.whole import changes_of, differences, low_rank
from diffusion_peft.methods.lora_file import LoRAFile
from peft_core.adaptation import adapt, remove, set_scale
from peft_core.attach import grafts_named
from peft_core.errors import PeftError, nearest
from peft_core.files import write_files
from peft_core.jobs.runs.process import tell

TextEncoders = nn.Module | Sequence[nn.Module | None] | None
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Imported:
    """What a file did: layers matched per model, and the keys that no module took.

    Args:
        embeddings: tokens that the file brings along (A1111's `bundle_emb`), with their vectors n D, one tensor a text
            encoder; `diffusion_peft.base.tokens.add_vectors` gives them to a base, whose tokenizers must learn them.
    """

    format: str
    matched: dict[str, int]
    unmatched: tuple[str, ...]
    embeddings: dict[str, list[Tensor]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{count} layers of {part}" for part, count in self.matched.items()]
        parts += [f"the token {name}" for name in self.embeddings]
        return f"{self.format}: {', '.join(parts)}; {len(self.unmatched)} keys unmatched"


def list_formats() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


Form = Literal["own", "lora", "diff"]
"""How a change is written: in its method's own factors, as plain LoRA, or as whole differences of weights."""


def export_adapter(
    unet: nn.Module | None,
    text_encoder: TextEncoders,
    path: str | os.PathLike,
    format: str,
    *,
    name: str | None = None,
    dtype: torch.dtype | None = None,
    as_: Form = "own",
    compress: float = 1.0,
) -> Path:
    """Write an adaptation as a LoRA file that other tools load.

    `diffusers_lora`: for `load_lora_weights` (lora, dora). `kohya`: lora for everybody; dora, loha and lokr by LyCORIS' keys,
    whose readers docs/diffusion.md names. With `as_` a file of any method whose effect is one on weights: `lora` is read
    by everybody, `diff` (kohya alone) by A1111, ComfyUI and LyCORIS.

    Args:
        unet: the adapted UNet or transformer; None to write text encoders alone.
        text_encoder: the adapted text encoder, both of SDXL as (first, second), or None. Stock models are left out.
        path: a `.safetensors` file, or a folder that gets a file of the format's usual name.
        name: which adaptation, where the models have several.
        dtype: of the file's tensors; as the adapters are (float32) where None.
        as_: own: the method's factors; lora: W' − W by its singular values; diff: W' − W and b' − b whole.
        compress: with `lora`, the share of the singular values' sum that is kept; what is left out is said.

    Raises:
        PeftError: unknown format, nothing to write, a method or a mixture that the format cannot hold, values that are no
            numbers.
    """
    _format(format)
    models = _models(unet, text_encoder)
    if as_ == "own":
        layers = {part: found for part, model in models.items() if (found := layers_of(model, name))}
    else:
        layers = _written_out(models, name, as_, compress)
    if not layers:
        what = "an adaptation" if name is None else f'the adaptation "{name}"'
        raise PeftError(f"none of these models has {what}: adapt(unet, …) first, and train it.")
    if all(layer.is_zero for found in layers.values() for layer in found.values()):
        raise PeftError("this adaptation changes nothing yet, all its layers are at their zero start: train it first.")
    return export_layers(models, layers, path, format, dtype)


def _written_out(
    models: dict[str, nn.Module], name: str | None, form: Form, share: float
) -> dict[str, dict[str, Layer]]:
    """Layers by part of what the adaptation does to the weights; says what LoRA cannot hold of it."""
    changes = {part: changes_of(model, name) for part, model in models.items() if chosen(model, name) is not None}
    if not changes:
        return {}
    if not any(changes.values()):
        raise PeftError("this adaptation changes nothing yet: train it first.")
    if form == "diff":
        return {part: differences(found) for part, found in changes.items() if found}
    forms = {part: low_rank(found, share) for part, found in changes.items() if found}
    rank = max(layer.rank for form in forms.values() for layer in form.layers.values())
    worst = max(form.left_out for form in forms.values())
    tell(f"as LoRA: ranks up to {rank}; {worst:.2%} of the change is left out")
    if skipped := [f"{part}.{path}" for part, form in forms.items() for path in form.skipped]:
        tell(
            f"note: biases and norms that it changes are not in it ({len(skipped)} modules, the first is {skipped[0]})"
        )
    return {part: form.layers for part, form in forms.items()}


def export_layers(
    models: dict[str, nn.Module],
    layers: dict[str, dict[str, Layer]],
    path: str | os.PathLike,
    format: str,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write layers by part (unet, text_encoder, text_encoder_2) and module path as a LoRA file."""
    writer = _format(format)
    for part, found in layers.items():
        for at, layer in found.items():
            if not all(tensor.isfinite().all() for tensor in layer.tensors.values()):
                raise PeftError(f"the adaptation of {part}.{at} holds values that are no numbers: train it again.")
    parts = Parts(models, layers)
    tensors, header = writer.write(parts)
    if dtype is not None:
        tensors = {key: value.to(dtype) for key, value in tensors.items()}
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / writer.FILE_NAME
    content = save({key: value.contiguous() for key, value in tensors.items()}, {"format": "pt"} | header)
    write_files(file.parent, {file.name: content})
    for note in writer.notes(parts):
        tell(f"note: {note}")
    return file


def import_adapter(
    unet: nn.Module | None,
    text_encoder: TextEncoders,
    path: str | os.PathLike | Content,
    *,
    name: str = "imported",
    scale: float = 1.0,
    strict: bool = True,
    allow_pickle: bool = False,
) -> Imported:
    """Read a LoRA file of any known format into the models, as an adaptation of the method `lora_file`.

    Reads diffusers and PEFT LoRA and DoRA (Stability's names for the UNet too), kohya/A1111 LoRA and LoCon (Tucker form
    too), LyCORIS LoHa, LoKr, full, norm, (IA)³, diag-OFT and GLoRA, and a magnitude over outputs or inputs of any of them.

    Args:
        path: a `.safetensors` file or the folder that holds it; or such a file opened.
        name: the adaptation's name; several files load side by side under different names.
        scale: as `set_scale` has it.
        strict: refuse a file of which a part finds no place; else say so in the result.
        allow_pickle: read a pickle too (`.bin`, `.pt`, …), its tensors and plain values only.

    Raises:
        PeftError: no such file, a pickle, no known format, another base model, keys that match nothing, no effect; the
            models are then as they were.
    """
    content = path if isinstance(path, Content) else open_content(path, allow_pickle)
    tokens, kept = bundled(content)
    source = open_source(kept, _models(unet, text_encoder))
    claimed = [format for format in list_formats() if _format(format).claims(source.tensors)]
    if not claimed:
        raise PeftError(
            f"{source.file} is no LoRA file of a known format (its first key is {min(source.tensors, default='none')}; "
            f"known formats: {', '.join(list_formats())})."
        )
    layers, unmatched = _format(claimed[0]).read(source)
    _check(source, layers, unmatched, strict)
    installed: list[nn.Module] = []
    try:
        for part, found in layers.items():
            _install(source.models[part], found, name, scale)
            installed.append(source.models[part])
    except PeftError:
        for model in installed:
            remove(model, name)
        raise
    return Imported(claimed[0], {part: len(found) for part, found in layers.items()}, tuple(sorted(unmatched)), tokens)


def _format(name: str) -> ModuleType:
    if name not in list_formats():
        raise PeftError(f'unknown format "{name}"{nearest(name, list_formats())} (known: {", ".join(list_formats())}).')
    return importlib.import_module(f"{__name__}.{name}")


def _models(unet: nn.Module | None, text_encoder: TextEncoders) -> dict[str, nn.Module]:
    several = isinstance(text_encoder, Sequence)
    texts = list(text_encoder) if several else [text_encoder]  # type: ignore[arg-type]
    part = "unet" if unet is None else part_of(unet)
    named = zip((part, "text_encoder", "text_encoder_2"), (unet, *texts), strict=False)
    return {part: model for part, model in named if model is not None}


def _check(source: Source, layers: dict[str, dict[str, Layer]], unmatched: list[str], strict: bool) -> None:
    for part, found in layers.items():
        for path, layer in found.items():
            weight = source.weight(part, path)
            if (wrong := misfit(layer, weight)) is not None:
                raise PeftError(
                    f"{source.file} is for another base model: {_difference(part, path, layer, weight, wrong)}."
                )
    total = sum(len(found) for found in layers.values())
    if not total or (unmatched and strict):
        shown = ", ".join(sorted(unmatched)[:5]) + (f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else "")
        meant = likely(source.tensors)
        here = family_of(source.models[source.denoiser]) if source.denoiser in source.models else None
        if meant and (here is None or here.title not in meant) and (not total or here is not None):
            raise PeftError(
                f"{source.file} is a LoRA of {' or '.join(meant)} by its keys, and it fits none of these models "
                f"({', '.join(f'{part}: {type(model).__name__}' for part, model in source.models.items())}): give the base "
                "that it belongs to."
            )
        raise PeftError(
            f"{source.file} does not fit these models ({', '.join(source.models)}): {total} layers match, but nothing takes "
            f"{shown}; give the model that they belong to, or go without them with --partial (in Python, strict=False)."
        )
    if all(layer.is_zero for found in layers.values() for layer in found.values()):
        raise PeftError(f"{source.file} has no effect: a factor of every layer is all zero.")


def _difference(part: str, path: str, layer: Layer, weight: torch.Tensor, wrong: str) -> str:
    if part == "unet" and layer.kind in ("lora", "dora") and path.endswith(("attn2.to_k", "attn2.to_v")):
        there, here = layer.tensors["A"].shape[1], weight[0].numel()
        if there != here:
            names = [f" ({_WIDTHS[width]})" if width in _WIDTHS else "" for width in (there, here)]
            return f"its texts are {there} wide{names[0]}, this UNet's {here}{names[1]}"
    return f"at {part}.{path} {wrong}"


def _install(model: nn.Module, layers: dict[str, Layer], name: str, scale: float) -> None:
    adapt(model, LoRAFile(layers={path: layer.settings() for path, layer in layers.items()}), name=name)
    paths = {id(module): path for path, module in model.named_modules()}
    for module, _, graft in grafts_named(model, name):
        fill(graft, layers[paths[id(module)]])  # type: ignore[arg-type]
    if scale != 1.0:
        set_scale(model, scale, name)
