"""A LoRA file opened: its tensors, its header, and the models that it is for."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffusion_peft.files.embeddings import read_pickle
from diffusion_peft.files.layers import Layer
from peft_core.errors import PeftError
from peft_core.jobs.hub.reach import PICKLES

_USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "lora.safetensors")


@dataclass(frozen=True)
class Parts:
    """What is written: models and layers by part (unet, text_encoder, text_encoder_2)."""

    models: dict[str, nn.Module]
    layers: dict[str, dict[str, Layer]]

    def kinds(self) -> set[str]:
        return {layer.kind for found in self.layers.values() for layer in found.values()}


@dataclass(frozen=True)
class Source:
    """What is read: the file, its tensors, its header, PEFT's configuration beside it, and models by part."""

    file: Path
    tensors: dict[str, Tensor]
    header: dict[str, str]
    config: dict[str, Any]
    models: dict[str, nn.Module]

    def module(self, part: str, path: str) -> str | None:
        """The path of the weight in this part's model; text encoders have their layers under text_model, or not."""
        model = self.models.get(part)
        if model is None:
            return None
        for candidate in (path, path.removeprefix("text_model."), f"text_model.{path}"):
            try:
                module = model.get_submodule(candidate)
            except AttributeError:
                continue
            if isinstance(module, nn.Linear | nn.Conv2d):
                return candidate
        return None


def is_sdxl(models: dict[str, nn.Module]) -> bool:
    config = getattr(models.get("unet"), "config", None)
    return "text_encoder_2" in models or getattr(config, "addition_embed_type", None) == "text_time"


def open_source(path: str | os.PathLike, models: dict[str, nn.Module], allow_pickle: bool = False) -> Source:
    """Raises PeftError: there is no such file, it is a pickle (and these are not allowed), or no safetensors file."""
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in _USUAL if (file / name).is_file()] or sorted(file.glob("*.safetensors"))
        if not found:
            pickles = [entry.name for entry in sorted(file.iterdir()) if entry.suffix in PICKLES]
            what = f"{pickles[0]}, but pickles are never loaded" if pickles else "no .safetensors file"
            raise PeftError(f"{file} has {what}: a LoRA file is a .safetensors file.")
        file = found[0]
    if not file.is_file() and file.suffix not in PICKLES:
        raise PeftError(f"there is no LoRA file {file}.")
    if file.suffix in PICKLES:
        tensors = {key: value for key, value in read_pickle(file, allow_pickle).items() if isinstance(value, Tensor)}
        return Source(file, tensors, {}, {}, models)
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}
            header = content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PeftError(f"{file} is truncated or no safetensors file: get it again.") from error
    config, beside = {}, file.parent / "adapter_config.json"
    if file.name == "adapter_model.safetensors" and beside.is_file():
        config = _json(beside.read_text(), beside)
    return Source(file, tensors, header, config, models)


def _json(text: str, where: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PeftError(f"{where} is damaged ({error}): get it again.") from error


def adapter_metadata(source: Source) -> dict[str, Any]:
    """What diffusers writes in the header of its LoRA files: `unet.r`, `unet.lora_alpha` …; {} where it is missing."""
    text = source.header.get("lora_adapter_metadata")
    return {} if text is None else _json(text, source.file)
