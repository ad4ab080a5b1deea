"""Adapter files: a folder with adapter.safetensors (a few MB, the head included) and adapter.json, its card."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from peft_core.adaptation import adapt, take_out
from peft_core.attach import Record, grafts_named, hook, inserted_by, is_inserted, record_of, unwrapped
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.grafts.graft import Graft
from peft_core.grafts.head import OwnHead, copied_head
from peft_core.grafts.packing import pack, unpack
from peft_core.method import Method
from peft_core.registry import check_known, make_method
from peft_core.saved.card import CARD, FORMAT, WEIGHTS, check_tensors, read_card, read_weights
from peft_core.saved.fingerprint import backbone_of, check_backbone
from peft_core.saved.former import tensors_of
from peft_core.stock import adapter_state, also_trained, head_of, trained_head, whole_of
from peft_core.versions import versions

# ---- writing -------------------------------------------------------------------------------------------------------


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
    methods = {adaptation.name: adaptation.method.as_trained(model) for adaptation in record.adaptations.values()}
    if also := also_trained(model):
        card = {"also_trained": also} | card
    card = {"train_head": bool(trained_head(model)) or not record.head_paths} | card
    return write_adapter(folder, methods, pack(model, adapter_state(model)), model, **card)


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
        "versions": versions(),
        **card,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n"
    kept: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, value in tensors.items():
        whole = whole_of(value.detach()).cpu().contiguous()
        # a module that stands in two places has two names, and a file no tensor twice
        kept[key] = whole.clone() if whole.numel() and whole.data_ptr() in places else whole
        places.add(whole.data_ptr())
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


# ---- reading -------------------------------------------------------------------------------------------------------


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
        weights = tensors_of(weights, _expected(model, before, also), model)
        for name in [name for name in record_of(model).adaptations if name not in before]:
            fit_grafts(model, weights, name)
        expected = _expected(model, before, also)
        weights = unpack(model, weights, expected, beside=bool(before))
        check_tensors(expected, weights, Path(folder))
        if not force:
            check_backbone(model, card["backbone"], Path(folder), also)
    except BaseException:
        # nothing was loaded yet: taking the grafts out leaves the stock weights as they were
        record: Record = model.__dict__.get("_peft_record") or Record()
        for adaptation in [a for name, a in record.adaptations.items() if name not in before]:
            take_out(model, adaptation)
        raise
    record, state = record_of(model), model.state_dict(keep_vars=True)
    for key in also:
        record.loaded.setdefault(key, state[key].detach().clone())
        if isinstance(state[key], nn.Parameter):
            state[key].requires_grad_(True)
    model.load_state_dict(weights, strict=False)
    return model


def fit_grafts(model: nn.Module, weights: Mapping[str, Tensor], name: str | None = None) -> None:
    """Grafts, of one adaptation or of all, whose sizes a file or a checkpoint decides take them."""
    for path, module in model.named_modules():
        if not isinstance(module, Graft) or not is_inserted(f"{path}.") or name not in (None, inserted_by(f"{path}.")):
            continue
        module.fit({k.removeprefix(f"{path}."): v for k, v in weights.items() if k.startswith(f"{path}.")})


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
        there = {k: v for k, v in weights.items() if k.startswith(f"{path}.peft.{name}.head.instead.")}
        own = {k: v for k, v in weights.items() if k.startswith(f"{path}.") and not is_inserted(k) and not there}
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
