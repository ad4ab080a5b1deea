"""LoRA files of other tools: written from adapted models, read into stock ones. One file a format, named as the format.

A format's file has FILE_NAME, `write(parts) -> (tensors, header)`, `claims(keys) -> bool` and
`read(source) -> (layers, unmatched keys)`; see `Parts` and `Source`.
"""

import importlib
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save
from torch import nn

from diffusion_peft.files.layers import Layer, check_fits, layers_of
from diffusion_peft.files.source import Parts, Source, open_source
from diffusion_peft.methods.lora_file import LoRAFile
from peft_core.adaptation import adapt, set_scale
from peft_core.attach import grafts_named
from peft_core.errors import PeftError, nearest
from peft_core.files import write_files

TextEncoders = nn.Module | Sequence[nn.Module | None] | None
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Imported:
    """What a file did: layers matched per model, and the keys that no module took."""

    format: str
    matched: dict[str, int]
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        parts = ", ".join(f"{count} layers of {part}" for part, count in self.matched.items())
        return f"{self.format}: {parts}; {len(self.unmatched)} keys unmatched"


def list_formats() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def export_adapter(
    unet: nn.Module | None,
    text_encoder: TextEncoders,
    path: str | os.PathLike,
    format: str,
    *,
    name: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write an adaptation as a LoRA file that other tools load.

    `diffusers_lora`: for `load_lora_weights` (lora, dora). `kohya`: for A1111, ComfyUI, sd-scripts and LyCORIS (lora, dora,
    loha, lokr; stock diffusers loads lora from it, drops the magnitudes of dora and refuses loha and lokr).

    Args:
        unet: the adapted UNet; None to write text encoders alone.
        text_encoder: the adapted text encoder, both of SDXL as (first, second), or None. Stock models are left out.
        path: a `.safetensors` file, or a folder that gets a file of the format's usual name.
        name: which adaptation, where the models have several.
        dtype: of the file's tensors; as the adapters are (float32) where None.

    Raises:
        PeftError: unknown format, nothing to write, a method or a mixture that the format cannot hold.
    """
    _format(format)
    models = _models(unet, text_encoder)
    layers = {part: found for part, model in models.items() if (found := layers_of(model, name))}
    if not layers:
        what = "an adaptation" if name is None else f'the adaptation "{name}"'
        raise PeftError(f"none of these models has {what}: adapt(unet, …) first, and train it.")
    if all(layer.is_zero for found in layers.values() for layer in found.values()):
        raise PeftError("this adaptation changes nothing yet, all its layers are at their zero start: train it first.")
    return export_layers(models, layers, path, format, dtype)


def export_layers(
    models: dict[str, nn.Module],
    layers: dict[str, dict[str, Layer]],
    path: str | os.PathLike,
    format: str,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write layers by part (unet, text_encoder, text_encoder_2) and module path as a LoRA file."""
    writer = _format(format)
    tensors, header = writer.write(Parts(models, layers))
    if dtype is not None:
        tensors = {key: value.to(dtype) for key, value in tensors.items()}
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / writer.FILE_NAME
    content = save({key: value.contiguous() for key, value in tensors.items()}, {"format": "pt"} | header)
    write_files(file.parent, {file.name: content})
    return file


def import_adapter(
    unet: nn.Module | None,
    text_encoder: TextEncoders,
    path: str | os.PathLike,
    *,
    name: str = "imported",
    scale: float = 1.0,
    strict: bool = True,
    allow_pickle: bool = False,
) -> Imported:
    """Read a LoRA file of any known format into the models, as an adaptation of the method `lora_file`.

    Reads diffusers and PEFT LoRA and DoRA, kohya/A1111 LoRA, LoCon (Tucker form too) and DoRA, LyCORIS LoHa and LoKr.

    Args:
        path: a `.safetensors` file or the folder that holds it.
        name: the adaptation's name; several files load side by side under different names.
        scale: as `set_scale` has it.
        strict: refuse a file of which a part finds no place; else say so in the result.
        allow_pickle: read a `.bin` or `.pt` file too, its tensors and plain values only.

    Raises:
        PeftError: no such file, a pickle, no known format, another base model, keys that match nothing, no effect; the
            models are then as they were.
    """
    source = open_source(path, _models(unet, text_encoder), allow_pickle)
    claimed = [format for format in list_formats() if _format(format).claims(source.tensors)]
    if not claimed:
        raise PeftError(
            f"{source.file} is no LoRA file of a known format (its first key is {min(source.tensors, default='none')}; "
            f"known formats: {', '.join(list_formats())})."
        )
    layers, unmatched = _format(claimed[0]).read(source)
    _check(source, layers, unmatched, strict)
    for part, found in layers.items():
        _install(source.models[part], found, name, scale)
    return Imported(claimed[0], {part: len(found) for part, found in layers.items()}, tuple(sorted(unmatched)))


def _format(name: str) -> ModuleType:
    if name not in list_formats():
        raise PeftError(f'unknown format "{name}"{nearest(name, list_formats())} (known: {", ".join(list_formats())}).')
    return importlib.import_module(f"{__name__}.{name}")


def _models(unet: nn.Module | None, text_encoder: TextEncoders) -> dict[str, nn.Module]:
    several = isinstance(text_encoder, Sequence)
    texts = list(text_encoder) if several else [text_encoder]  # type: ignore[arg-type]
    named = zip(("unet", "text_encoder", "text_encoder_2"), (unet, *texts), strict=False)
    return {part: model for part, model in named if model is not None}


def _check(source: Source, layers: dict[str, dict[str, Layer]], unmatched: list[str], strict: bool) -> None:
    for part, found in layers.items():
        for path, layer in found.items():
            weight = source.models[part].get_submodule(path)._parameters["weight"]
            if not check_fits(layer, weight):  # type: ignore[arg-type]
                raise PeftError(
                    f"{source.file} is for another base model: {_difference(part, path, layer, weight)}."  # type: ignore[arg-type]
                )
    total = sum(len(found) for found in layers.values())
    if not total or (unmatched and strict):
        shown = ", ".join(sorted(unmatched)[:5]) + (f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else "")
        raise PeftError(
            f"{source.file} does not fit these models ({', '.join(source.models)}): {total} layers match, but nothing takes "
            f"{shown}; give the model that they belong to, or strict=False to go without them."
        )
    if all(layer.is_zero for found in layers.values() for layer in found.values()):
        raise PeftError(f"{source.file} has no effect: a factor of every layer is all zero.")


def _difference(part: str, path: str, layer: Layer, weight: torch.Tensor) -> str:
    place = f"{part}.{path}"
    if layer.kind in ("lora", "dora"):
        there, here = layer.tensors["A"].shape[1], weight[0].numel()
        if path.endswith(("attn2.to_k", "attn2.to_v")) and there != here:
            names = [f" ({_WIDTHS[width]})" if width in _WIDTHS else "" for width in (there, here)]
            return f"its texts are {there} wide{names[0]}, this UNet's {here}{names[1]}"
        return f"{place} changes a weight of ({layer.tensors['B'].shape[0]}, {there}), here it is {tuple(weight.shape)}"
    return f"{place} does not fit a weight of {tuple(weight.shape)}"


def _install(model: nn.Module, layers: dict[str, Layer], name: str, scale: float) -> None:
    adapt(model, LoRAFile(layers={path: layer.settings() for path, layer in layers.items()}), name=name)
    paths = {id(module): path for path, module in model.named_modules()}
    with torch.no_grad():
        for module, _, graft in grafts_named(model, name):
            for key, value in layers[paths[id(module)]].tensors.items():
                graft.get_parameter(key).copy_(value)
    if scale != 1.0:
        set_scale(model, scale, name)
