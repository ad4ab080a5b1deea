"""An adapter's two files as they are found: the one input that comes from strangers, looked at before anything uses it."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.files import read_json
from peft_core.saved.fingerprint import BUCKETS, is_sketch

WEIGHTS, CARD, FORMAT = "adapter.safetensors", "adapter.json", 2
_OTHER = "load it onto the model that it was saved from, with the same classes"


def read_card(folder: str | os.PathLike) -> dict[str, Any]:
    """The card of an adapter folder.

    Raises:
        PeftError: no such folder, no adapter in it, a pickle in place of one, a card that is not readable.
    """
    folder = Path(folder)
    if folder.is_file() or folder.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        raise PeftError(f"{folder} is no adapter folder: pickles are never loaded, an adapter is {WEIGHTS} and {CARD}.")
    if not folder.is_dir():
        raise PeftError(f"there is no adapter folder {folder}.")
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise PeftError(f"{folder} is no adapter folder: it has no {name}.")
    card = read_json(folder / CARD, "save the adapter again")
    if isinstance(card, dict) and isinstance(card.get("format"), int) and card["format"] > FORMAT:
        raise PeftError(f"{folder} was written by a newer version (format {card['format']}): update visual-peft.")
    if wrong := _wrong_in(card):
        raise PeftError(f"{folder / CARD} is damaged ({wrong}): save the adapter again.")
    return card


_ENTRIES = {"format": int, "adaptations": list, "train_head": bool, "backbone": dict}
_OF_ADAPTATION = {"name": str, "method": str, "settings": dict}
_OF_BACKBONE = {"class": str, "name": str | None, "parameters": int, "fingerprint": list}


def _wrong_in(card: Any) -> str | None:
    """What of a card is missing or of another kind than `save_adapter` writes."""
    if not isinstance(card, dict):
        return "it holds no entries"
    found = _mismatch(card, _ENTRIES) or _mismatch(card["backbone"], _OF_BACKBONE, "backbone.")
    for entry in [] if found else card["adaptations"]:
        found = found or (
            _mismatch(entry, _OF_ADAPTATION, "adaptations.") if isinstance(entry, dict) else "adaptations"
        )
    if found:
        return found
    if not card["adaptations"]:
        return "adaptations is empty"
    if not is_sketch(card["backbone"]["fingerprint"]):
        return f"backbone.fingerprint is no list of {BUCKETS} numbers"
    also = card.get("also_trained", [])
    return (
        None
        if isinstance(also, list) and all(isinstance(key, str) for key in also)
        else "also_trained is no list of names"
    )


def _mismatch(entries: dict[str, Any], kinds: dict[str, Any], at: str = "") -> str | None:
    for key, kind in kinds.items():
        if key not in entries:
            return f"it has no {at}{key}"
        if not isinstance(entries[key], kind) or (kind is int and isinstance(entries[key], bool)):
            return f"{at}{key} is {entries[key]!r}"
    return None


def read_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of an adapter folder.

    Raises:
        PeftError: a file that is truncated or of another kind, or that holds NaN or infinity.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise PeftError(f"{path} is truncated or no safetensors file: copy or save the adapter again.") from error
    check_finite(tensors, path)
    return tensors


def check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises PeftError where a tensor holds values that are no numbers."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise PeftError(
                f"{path} holds values that are no finite numbers ({key}): its training diverged, or it is damaged."
            )


def check_tensors(tensors: dict[str, Tensor], weights: dict[str, Tensor], folder: Path) -> None:
    """Raises PeftError unless the file's weights have the names and shapes of `tensors`."""
    kinds = {key: value.is_floating_point() for key, value in tensors.items()}
    for key in sorted(kinds.keys() & weights.keys()):
        if weights[key].is_floating_point() != kinds[key]:
            raise PeftError(f"{folder} does not fit this model: {key} is {weights[key].dtype} in the file; {_OTHER}.")
    expected = {key: tuple(value.shape) for key, value in tensors.items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    if wrong:
        key = wrong[0]
        raise PeftError(
            f"{folder} does not fit this model: {key} is {found[key]} in the file and {expected[key]} here"
            f"{f' (and {len(wrong) - 1} more)' if wrong[1:] else ''}; {_OTHER}."
        )
    for what, keys in (("lacks", expected.keys() - found.keys()), ("has also", found.keys() - expected.keys())):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise PeftError(f"{folder} does not fit this model: the file {what} {min(keys)}{more}; {_OTHER}.")
