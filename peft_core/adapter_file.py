"""Adapter files: a folder with adapter.safetensors (a few MB, the head included) and adapter.json, its card."""

import json
import os
import platform
import zlib
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from peft_core.adaptation import adapt, take_out
from peft_core.attach import Record, inserted_by, is_inserted, pick, record_of
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.former import tensors_of
from peft_core.method import Method
from peft_core.registry import check_known, make_method

WEIGHTS, CARD, FORMAT = "adapter.safetensors", "adapter.json", 2
_BUCKETS, _TOLERANCE = 8, 0.02
_LIBRARIES = ("torch", "timm", "open_clip_torch", "diffusers", "transformers", "safetensors")


# ---- writing -------------------------------------------------------------------------------------------------------


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What makes this model differ from the stock one: inserted tensors, stock weights that train, the head."""
    record = record_of(model)
    changed = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | set(record.head)
    state = model.state_dict()
    return {key: value for key, value in state.items() if is_inserted(key) or key in changed}


def save_adapter(model: nn.Module, folder: str | os.PathLike, **card: Any) -> Path:
    """Write all adaptations of `model` (and its head) to a folder; `card` adds entries such as class_names or mean.

    Both files are written beside their places and then moved there: an interrupted or failed save keeps the old ones.

    Raises:
        PeftError: the model has no adaptation, or the folder cannot be written.
    """
    record, folder = record_of(model), Path(folder)
    for adaptation in record.adaptations.values():
        if adaptation.scale != 1.0:
            raise PeftError(
                f"{adaptation.name} is scaled to {adaptation.scale}: set_scale(model, 1.0) before saving it."
            )
    for adaptation in record.adaptations.values():
        check_known(adaptation.method)
    methods = {adaptation.name: adaptation.method for adaptation in record.adaptations.values()}
    card = {"train_head": bool(record.head) or not record.heads} | card
    return write_adapter(folder, methods, adapter_state(model), model, **card)


def write_adapter(
    folder: str | os.PathLike, methods: dict[str, Method], tensors: dict[str, Tensor], model: nn.Module, **card: Any
) -> Path:
    """Write these tensors as an adapter folder, for what is learnt beside `model` rather than in it.

    Args:
        methods: name -> method of the adaptations that the tensors belong to.
        card: further entries of the card.
    """
    folder, card = Path(folder), {"train_head": False} | card
    content = {
        "format": FORMAT,
        "adaptations": [{"name": n, "method": m.name, "settings": asdict(m)} for n, m in methods.items()],
        "train_head": card.pop("train_head"),
        "backbone": backbone_of(model),
        "versions": _versions(),
        **card,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n"
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_files(folder, {WEIGHTS: save(kept), CARD: text.encode()})
    return folder


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | set | range):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot stand in a card")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


# ---- which backbone ------------------------------------------------------------------------------------------------


def backbone_of(model: nn.Module) -> dict[str, Any]:
    """Name and fingerprint of the stock model: a sketch of its frozen weights that survives a change of precision.

    The frozen tensors fall into 8 buckets by the CRC-32 of their names; each gives Σ w / √(Σ w²), which changes by about
    1 from one set of weights to another and by about 0.001 where they are rounded to bfloat16.
    """
    record: Record = model.__dict__.get("_peft_record") or Record()
    left_out = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | set(record.heads)
    frozen = {k: p.detach() for k, p in model.named_parameters() if not is_inserted(k) and k not in left_out}
    return {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "name": _name(model),
        "parameters": sum(p.numel() for p in frozen.values()),
        "fingerprint": _sketch(frozen),
    }


def _name(model: nn.Module) -> str | None:
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("architecture"):
        return None
    return ".".join(part for part in (config["architecture"], config.get("tag")) if part)


def _sketch(tensors: dict[str, Tensor]) -> list[float]:
    sums, squares = [0.0] * _BUCKETS, [0.0] * _BUCKETS
    for key, tensor in tensors.items():
        if tensor.is_meta:
            raise PeftError("a model on the meta device has no weights to save or to load an adapter onto.")
        bucket, values = zlib.crc32(key.encode()) % _BUCKETS, tensor.float()
        sums[bucket] += values.sum(dtype=torch.float64).item()
        squares[bucket] += values.square().sum(dtype=torch.float64).item()
    return [round(s / max(q, 1e-30) ** 0.5, 4) for s, q in zip(sums, squares, strict=True)]


# ---- reading -------------------------------------------------------------------------------------------------------


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
    try:
        card = json.loads((folder / CARD).read_text())
        [(entry["name"], entry["method"], entry["settings"]) for entry in card["adaptations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PeftError(
            f"{folder / CARD} is damaged ({type(error).__name__}: {error}): save the adapter again."
        ) from error
    if card.get("format", 0) > FORMAT:
        raise PeftError(f"{folder} was written by a newer version (format {card['format']}): update visual-peft.")
    return card


def read_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise PeftError(f"{path} is truncated or no safetensors file: copy or save the adapter again.") from error


def load_adapter(model: nn.Module, folder: str | os.PathLike, force: bool = False, prefix: str = "") -> nn.Module:
    """Install on a stock model the adaptations that a folder's card names, and load their weights and the head.

    Args:
        force: load onto another backbone too, where the shapes fit.
        prefix: put before the adaptations' names; with one, adapters load side by side onto one model.

    Raises:
        PeftError: the folder holds no adapter, or the backbone differs (the message says in what); the model is then
            as it was.
    """
    card, weights = read_card(folder), read_weights(folder)
    if "_peft_record" in model.__dict__ and not prefix:
        raise PeftError("this model is adapted already: load the adapter onto a stock model, or remove(model) first.")
    before = set(model.__dict__["_peft_record"].adaptations) if "_peft_record" in model.__dict__ else set()
    weights = {_prefixed(key, prefix): value for key, value in weights.items()}
    try:
        for entry in card["adaptations"]:
            settings = type(make_method(entry["method"])).of_card(entry["settings"], card.get("format", 1))
            method = make_method(entry["method"], **settings)
            adapt(model, method, name=prefix + entry["name"], train_head=card["train_head"])
        others = {key for key in adapter_state(model) if is_inserted(key) and inserted_by(key) in before}
        expected = {key: value for key, value in adapter_state(model).items() if key not in others}
        weights = tensors_of(weights, expected, model)
        check_tensors(expected, weights, Path(folder))
        if not force:
            check_backbone(model, card["backbone"], Path(folder))
    except PeftError:
        # nothing was loaded yet: taking the grafts out leaves the stock weights as they were
        for adaptation in pick(model, None) if "_peft_record" in model.__dict__ else ():
            if adaptation.name not in before:
                take_out(model, adaptation)
        raise
    model.load_state_dict(weights, strict=False)
    return model


def _prefixed(key: str, prefix: str) -> str:
    """An inserted tensor's key under the adaptation's longer name."""
    if not prefix or not is_inserted(key):
        return key
    parts = key.split(".")
    parts[parts.index("peft") + 1] = prefix + inserted_by(key)
    return ".".join(parts)


def check_tensors(tensors: dict[str, Tensor], weights: dict[str, Tensor], folder: Path) -> None:
    """Raises PeftError unless the file's weights have the names and shapes of `tensors`."""
    expected = {key: tuple(value.shape) for key, value in tensors.items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    if wrong:
        key = wrong[0]
        raise PeftError(
            f"{folder} does not fit this model: {key} is {found[key]} in the file and {expected[key]} here"
            f"{f' (and {len(wrong) - 1} more)' if wrong[1:] else ''}."
        )
    for what, keys in (("lacks", expected.keys() - found.keys()), ("has also", found.keys() - expected.keys())):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise PeftError(f"{folder} does not fit this model: the file {what} {min(keys)}{more}.")


def check_backbone(model: nn.Module, card: dict[str, Any], folder: Path) -> None:
    """Raises PeftError unless `model` is the backbone that a card's entry describes."""
    here = backbone_of(model)
    for what, key in (("architecture", "class"), ("number of frozen parameters", "parameters")):
        if card[key] != here[key]:
            raise PeftError(
                f"{folder} was trained on another backbone: its {what} is {card[key]}, this model's {here[key]}."
            )
    if any(abs(a - b) > _TOLERANCE for a, b in zip(card["fingerprint"], here["fingerprint"], strict=True)):
        names = f" ({card['name']}, this one is {here['name']})" if card["name"] or here["name"] else ""
        raise PeftError(
            f"{folder} was trained on a backbone with other weights{names}: load that one, or force the load if you mean it."
        )
