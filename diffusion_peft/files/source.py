"""Files of other tools opened: what they hold is told by their content, not by their names."""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffusion_peft.files.layers import Layer
from diffusion_peft.files.sgm import stock_names
from peft_core.errors import PeftError
from peft_core.files import parse_json, read_json
from peft_core.jobs.hub.reach import PICKLES

DENOISERS = ("unet", "transformer")
_USUAL = ("pytorch_lora_weights", "adapter_model", "lora")
_WHOLE = ("alpha", "on_input", "position_ids")
"""Ends of keys whose tensors may hold whole numbers."""


@dataclass(frozen=True)
class Content:
    """An opened file: its tensors by key (of a pickle, plain values too) and its header."""

    file: Path
    values: dict[str, Any]
    header: dict[str, str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.values.items() if isinstance(value, Tensor)}


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
    names: dict[str, str]
    """Stability's name -> diffusers' path, of the UNet's modules."""

    @property
    def denoiser(self) -> str:
        """What a part that no name is given for is."""
        return next((part for part in self.models if part in DENOISERS), "unet")

    def weight(self, part: str, path: str) -> Tensor:
        return weight_at(self.models[part], path)

    def module(self, part: str, path: str) -> str | None:
        """The path of the weight in this part's model, by diffusers' or by Stability's name; text encoders have their layers
        under text_model, or not."""
        model = self.models.get(part)
        if model is None:
            return None
        named = self.names.get(path, path) if part == self.denoiser else path
        for candidate in (path, named, path.removeprefix("text_model."), f"text_model.{path}"):
            try:
                module = model.get_submodule(candidate)
            except AttributeError:
                continue
            if isinstance(module, nn.Linear | nn.Conv2d):
                return candidate
        return None


def weight_at(model: nn.Module, path: str) -> Tensor:
    return model.get_submodule(path)._parameters["weight"]  # type: ignore[return-value]


def is_sdxl(models: dict[str, nn.Module]) -> bool:
    config = getattr(models.get("unet"), "config", None)
    return "text_encoder_2" in models or getattr(config, "addition_embed_type", None) == "text_time"


def open_content(path: str | os.PathLike, allow_pickle: bool = False) -> Content:
    """A file, or the usual one of a folder.

    Raises:
        PeftError: no such file, a pickle (unless allowed), neither safetensors nor pickle, values that are no numbers.
    """
    file = Path(path)
    if file.is_dir():
        file = _in_folder(file, allow_pickle)
    if not file.is_file():
        raise PeftError(f"there is no LoRA file {file}.")
    if is_pickle(file):
        content = Content(file, read_pickle(file, allow_pickle), {})
    else:
        try:
            with safe_open(file, framework="pt") as opened:
                content = Content(file, {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise PeftError(f"{file} is truncated or no safetensors file: get it again.") from error
    _check_numbers(file, content.values)
    return content


def _in_folder(folder: Path, allow_pickle: bool) -> Path:
    usual = [folder / f"{name}.safetensors" for name in _USUAL]
    found = [file for file in usual if file.is_file()] or sorted(folder.glob("*.safetensors"))
    if found:
        return found[0]
    pickles = [entry for entry in sorted(folder.iterdir()) if entry.suffix in PICKLES]
    if pickles and allow_pickle:
        return next((file for name in _USUAL for file in pickles if file.stem == name), pickles[0])
    if pickles:
        raise PeftError(
            f"{folder} has no .safetensors file but {pickles[0].name}, a pickle, which can run code when it is loaded: get it "
            "as .safetensors, or add --allow_pickle, which reads tensors and plain values only."
        )
    raise PeftError(f"{folder} has no .safetensors file.")


def is_pickle(file: Path) -> bool:
    """Whether a file begins as pickles and torch's archives of them do."""
    with open(file, "rb") as opened:
        start = opened.read(16)
    return start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{"


def read_pickle(file: Path, allow: bool) -> dict[str, Any]:
    """A pickle's dictionary by torch's loader of tensors and plain values, where the user asks for it.

    Raises:
        PeftError: not asked for, or it holds anything else.
    """
    if not allow:
        raise PeftError(
            f"{file} is a pickle, which can run code when it is loaded: get it as .safetensors, or add --allow_pickle, which "
            "reads tensors and plain values only."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols
            with open(file, "rb") as opened:  # a path's name would tell torch how to read it
                content = torch.load(opened, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, ImportError, AttributeError, KeyError) as error:
        raise PeftError(f"{file} cannot be read ({(str(error).strip() or 'it is cut').splitlines()[0]}).") from error
    except pickle.UnpicklingError as error:
        raise PeftError(f"{file} holds more than tensors and plain values, so it is not loaded.") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise PeftError(f"{file} holds no dictionary of tensors.")
    return {str(key): value for key, value in content.items()}


def _check_numbers(file: Path, values: dict[str, Any], within: str = "") -> None:
    """Raises PeftError: NaN or infinity, or whole numbers where weights belong."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_numbers(file, value, f"{within}{key}.")
        if not isinstance(value, Tensor):
            continue
        if not value.is_floating_point() and not key.endswith(_WHOLE):
            raise PeftError(f"{file} is damaged: {within}{key} holds {str(value.dtype)[6:]}, where weights belong.")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise PeftError(f"{file} is damaged: {within}{key} holds values that are no numbers.")


def open_source(content: Content, models: dict[str, nn.Module]) -> Source:
    """A LoRA file's content beside the models that it is for.

    Raises:
        PeftError: PEFT's configuration beside it is damaged.
    """
    config, beside = {}, content.file.parent / "adapter_config.json"
    if content.file.stem == "adapter_model" and beside.is_file():
        config = read_json(beside, "get it again")
    names = stock_names(models["unet"]) if "unet" in models else {}
    return Source(content.file, content.tensors, content.header, config, models, names)


def adapter_metadata(source: Source) -> dict[str, Any]:
    """What diffusers writes in the header of its LoRA files: `unet.r`, `unet.lora_alpha` …; {} where it is missing."""
    text = source.header.get("lora_adapter_metadata")
    return {} if text is None else parse_json(text, f"the header of {source.file}", "get it again")
