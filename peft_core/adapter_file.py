"""Adapter files: a folder with adapter.safetensors (a few MB, the head included) and adapter.json, its card."""

import json
import os
import platform
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from peft_core.adaptation import adapt, take_out
from peft_core.attach import Record, grafts_named, hook, inserted_by, is_inserted, record_of, unwrapped
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.former import tensors_of
from peft_core.grafts.head import OwnHead, copied_head
from peft_core.method import Method
from peft_core.registry import check_known, make_method
from peft_core.stock import head_of, trained_head

WEIGHTS, CARD, FORMAT = "adapter.safetensors", "adapter.json", 2
_BUCKETS, _TOLERANCE = 8, 0.02
_LIBRARIES = ("torch", "timm", "open_clip_torch", "diffusers", "transformers", "safetensors")


# ---- writing -------------------------------------------------------------------------------------------------------


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What makes this model differ from the stock one: inserted tensors, stock weights that train, the head, and what
    was unfrozen by hand."""
    record = record_of(model)
    changed = {key for adaptation in record.adaptations.values() for key in adaptation.trained}
    changed |= trained_head(model).keys() | set(also_trained(model)) | _moved_statistics(model)
    state = model.state_dict()
    return {key: value for key, value in state.items() if is_inserted(key) or key in changed}


def also_trained(model: nn.Module) -> list[str]:
    """Stock parameters outside the head that train although no adaptation asked for them, and those that a file held."""
    record = record_of(model)
    known = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | head_of(model).keys()
    trains = [key for key, p in model.named_parameters() if p.requires_grad and not is_inserted(key)]
    return [key for key in dict.fromkeys((*trains, *record.loaded)) if key not in known]


def _moved_statistics(model: nn.Module) -> set[str]:
    if not any(adaptation.method.moves_statistics for adaptation in record_of(model).adaptations.values()):
        return set()
    kept = model.state_dict().keys() - dict(model.named_parameters()).keys()
    return {key for key in kept if key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")}


def save_adapter(model: nn.Module, folder: str | os.PathLike, **card: Any) -> Path:
    """Write all adaptations of `model` (and its head) to a folder; `card` adds entries such as class_names or mean.

    What is written is what trains: also stock parameters that were unfrozen by hand, which the card lists.

    Both files are written beside their places and then moved there: an interrupted or failed save keeps the old ones.

    Raises:
        PeftError: the model has no adaptation, or the folder cannot be written.
    """
    model = unwrapped(model)
    record, folder = record_of(model), Path(folder)
    for adaptation in record.adaptations.values():
        if adaptation.scale != 1.0:
            raise PeftError(
                f"{adaptation.name} is scaled to {adaptation.scale}: set_scale(model, 1.0) before saving it."
            )
    for adaptation in record.adaptations.values():
        check_known(adaptation.method)
    methods = {adaptation.name: adaptation.method for adaptation in record.adaptations.values()}
    if also := also_trained(model):
        card = {"also_trained": also} | card
    card = {"train_head": bool(trained_head(model)) or not record.head_paths} | card
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
        "adaptations": [_entry(name, method, model) for name, method in methods.items()],
        "train_head": card.pop("train_head"),
        "backbone": backbone_of(model),
        "versions": _versions(),
        **card,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n"
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_files(folder, {WEIGHTS: save(kept), CARD: text.encode()})
    return folder


def _entry(name: str, method: Method, model: nn.Module) -> dict[str, Any]:
    entry = {"name": name, "method": method.name, "settings": asdict(method)}
    if any(isinstance(graft, OwnHead) for *_, graft in grafts_named(model, name)):
        entry["own_head"] = True
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | set | range):
        return list(value)
    if isinstance(value, os.PathLike):
        return str(value)
    if hasattr(value, "tolist"):  # of numpy: numbers and arrays
        return value.tolist()
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


def backbone_of(model: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    """Name and fingerprint of the stock model: a sketch of its frozen weights that survives a change of precision.

    The frozen tensors fall into 8 buckets by the CRC-32 of their names; each gives Σ w / √(Σ w²), which changes by about
    1 from one set of weights to another and by about 0.001 where they are rounded to bfloat16. The head, what adaptations
    train and the parameters `without` are left out.
    """
    record: Record = model.__dict__.get("_peft_record") or Record()
    left_out = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | head_of(model).keys()
    left_out |= set(without) | set(also_trained(model) if record.adaptations else ())
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
        card = json.loads((folder / CARD).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PeftError(f"{folder / CARD} is damaged ({error}): save the adapter again.") from error
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
    numbers = card["backbone"]["fingerprint"]
    if len(numbers) != _BUCKETS or not all(isinstance(number, int | float) for number in numbers):
        return f"backbone.fingerprint is no list of {_BUCKETS} numbers"
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


def load_adapter(model: nn.Module, folder: str | os.PathLike, force: bool = False, prefix: str = "") -> nn.Module:
    """Install on a stock model the adaptations that a folder's card names, and load their weights and the head.

    Args:
        force: load onto another backbone too, where the shapes fit.
        prefix: put before the adaptations' names; with one, adapters load side by side onto one model. The first one's
            head is the model's; each later one brings its own, which speaks while its adaptation is on.

    Raises:
        PeftError: the folder holds no adapter, or the backbone differs (the message says in what); the model is then
            as it was.
    """
    card, weights = read_card(folder), read_weights(folder)
    if "_peft_record" in model.__dict__ and not prefix:
        raise PeftError("this model is adapted already: load the adapter onto a stock model, or remove(model) first.")
    before = set(model.__dict__["_peft_record"].adaptations) if "_peft_record" in model.__dict__ else set()
    weights = {_prefixed(key, prefix): value for key, value in weights.items()}
    also = card.get("also_trained", [])
    try:
        for entry in card["adaptations"]:
            settings = type(make_method(entry["method"])).of_card(entry["settings"], card.get("format", 1))
            method = make_method(entry["method"], **settings)
            adapt(model, method, name=prefix + entry["name"], train_head=card["train_head"])
            if before or entry.get("own_head"):
                weights = _give_head(model, prefix + entry["name"], weights)
        expected = _expected(model, before, also)
        weights = tensors_of(weights, expected, model)
        check_tensors(expected, weights, Path(folder))
        if not force:
            check_backbone(model, card["backbone"], Path(folder), also)
    except BaseException:
        # nothing was loaded yet: taking the grafts out leaves the stock weights as they were
        record: Record = model.__dict__.get("_peft_record") or Record()
        for adaptation in [a for name, a in record.adaptations.items() if name not in before]:
            take_out(model, adaptation)
        raise
    record, parameters = record_of(model), dict(model.named_parameters())
    for key in also:
        record.loaded.setdefault(key, parameters[key].detach().clone())
        parameters[key].requires_grad_(True)
    model.load_state_dict(weights, strict=False)
    return model


def _expected(model: nn.Module, before: set[str], also: list[str]) -> dict[str, Tensor]:
    """The tensors that the file of the adaptations just installed must have."""
    state, head = model.state_dict(), head_of(model)
    wanted = {k: v for k, v in adapter_state(model).items() if not (is_inserted(k) and inserted_by(k) in before)}
    if before:  # the model's own head, and what else trains in it, belong to those that were there
        others = {key for name in before for key in record_of(model).adaptations[name].trained}
        wanted = {k: v for k, v in wanted.items() if k not in head and k not in others and k not in also_trained(model)}
    return wanted | {key: state[key] for key in also if key in state}


def _give_head(model: nn.Module, name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head of its own for an adaptation, of the file's number of classes; the file's tensors under their keys there."""
    moved = dict(weights)
    for path in record_of(model).head_paths:
        own = {key: value for key, value in weights.items() if key.startswith(f"{path}.") and not is_inserted(key)}
        there = {k: v for k, v in weights.items() if k.startswith(f"{path}.peft.{name}.head.instead.")}
        if not own and not there:
            continue
        bias = next((v for k, v in (own | there).items() if k.endswith("bias")), None)
        module: Any = model.get_submodule(path)
        graft = OwnHead(copied_head(module, None if bias is None else len(bias)))
        if "peft" not in module._modules:
            module.add_module("peft", nn.ModuleDict())
        if name not in module.peft:
            module.peft[name] = nn.ModuleDict()
        module.peft[name]["head"] = graft
        hook(module, writes=True)
        for key, value in own.items():
            del moved[key]
            moved[f"{path}.peft.{name}.head.instead.{key.removeprefix(path + '.')}"] = value
    return moved


def _prefixed(key: str, prefix: str) -> str:
    """An inserted tensor's key under the adaptation's longer name."""
    if not prefix or not is_inserted(key):
        return key
    parts = key.split(".")
    parts[parts.index("peft") + 1] = prefix + inserted_by(key)
    return ".".join(parts)


def check_tensors(tensors: dict[str, Tensor], weights: dict[str, Tensor], folder: Path) -> None:
    """Raises PeftError unless the file's weights have the names and shapes of `tensors`."""
    kinds = {key: value.is_floating_point() for key, value in tensors.items()}
    for key in sorted(kinds.keys() & weights.keys()):
        if weights[key].is_floating_point() != kinds[key]:
            raise PeftError(f"{folder} does not fit this model: {key} is {weights[key].dtype} in the file.")
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


def check_backbone(model: nn.Module, card: dict[str, Any], folder: Path, without: Iterable[str] = ()) -> None:
    """Raises PeftError unless `model` is the backbone that a card's entry describes, the parameters `without` apart."""
    here = backbone_of(model, without)
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
