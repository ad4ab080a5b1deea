"""Putting a plan's grafts into a model and taking them out again; what a model remembers of its adaptations."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import refuse_wrapped
from peft_core.errors import PeftError
from peft_core.grafts.attention import check_supported
from peft_core.grafts.branch import Branch
from peft_core.grafts.calls import Call, calling
from peft_core.grafts.graft import Delta, Graft, after, before
from peft_core.grafts.weight_changes import restore_class, swap_class
from peft_core.kernels import rebuild
from peft_core.method import Method, Plan


@dataclass
class Adaptation:
    """One adapt() call: its method, and the stock parameters it trains with their original values."""

    name: str
    method: Method
    trained: list[str] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Trained values, while the model holds others for a moment (scale ≠ 1)."""
    scale: float = 1.0


@dataclass
class Record:
    """What an adapted model knows of itself; in `model.__dict__`, so that it is copied and pickled along."""

    adaptations: dict[str, Adaptation] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """Parameters of the head, and those of them that train are `head`."""
    required_grad: dict[str, bool] = field(default_factory=dict)
    silenced: list[tuple[str, str, float]] = field(default_factory=list)


def record_of(model: nn.Module) -> Record:
    record = model.__dict__.get("_peft_record")
    if record is None:
        refuse_wrapped(model)
        raise PeftError("this model has no adaptation: call adapt(model, method) first.")
    return record


def pick(model: nn.Module, name: str | None) -> list[Adaptation]:
    """The adaptation of that name, or all of them."""
    known = record_of(model).adaptations
    if name is None:
        return list(known.values())
    if name not in known:
        raise PeftError(f'no adaptation "{name}" here (there is: {", ".join(known)}).')
    return [known[name]]


def grafts_named(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str, Graft]]:
    """(module, slot, graft) of one adaptation."""
    for module in list(model.modules()):
        slots = module._modules.get("peft")
        if slots is not None and name in slots:  # type: ignore[operator]
            for slot, graft in slots[name].items():  # type: ignore[index,union-attr]
                yield module, slot, graft


def is_inserted(key: str) -> bool:
    """Whether a parameter's or buffer's dotted name is an adapter's."""
    return "peft" in key.split(".")


def inserted_by(key: str) -> str:
    """The adaptation that an inserted parameter belongs to."""
    parts = key.split(".")
    return parts[parts.index("peft") + 1]


# ---- in ------------------------------------------------------------------------------------------------------------


def attach(model: nn.Module, plan: Plan, name: str) -> None:
    for path, slot, graft in plan.grafts:
        module = model.get_submodule(path)
        if isinstance(graft, Delta):
            _swap(model, path, module)
        else:
            _hook(module, graft)
            parent = model.get_submodule(path.rpartition(".")[0])
            if isinstance(parent, nn.MultiheadAttention):
                swap_class(parent)
        if "peft" not in module._modules:
            module.add_module("peft", nn.ModuleDict())
        slots: Any = module.peft
        if name not in slots:
            slots[name] = nn.ModuleDict()
        slots[name][slot] = graft
    for path, branch in plan.taps:
        module = model.get_submodule(path)
        _hook(module)
        module.__dict__.setdefault("peft_taps", []).append(branch)
    if any(isinstance(graft, Delta) and graft.rebuilds_input for _, _, graft in plan.grafts):
        for module in model.modules():
            if rebuild.keeps_its_input(module) and rebuild.tag not in module._forward_hooks.values():
                # first of all hooks: what a later one changes is another tensor and carries no tag
                module.register_forward_hook(rebuild.tag, prepend=True)


def _swap(model: nn.Module, path: str, module: nn.Module) -> None:
    parent = model.get_submodule(path.rpartition(".")[0])
    for owner in (module, parent):
        if isinstance(owner, nn.MultiheadAttention):
            check_supported(owner)
            swap_class(owner)
    swap_class(module)


def _hook(module: nn.Module, graft: Graft | None = None) -> None:
    """The hooks that `graft` needs on its module; reading is all that None needs."""
    changes_input = graft is None or type(graft).before is not Graft.before
    changes_output = graft is not None and type(graft).after is not Graft.after
    if changes_input and before not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(before)
    if changes_output and after not in module._forward_hooks.values():
        module.register_forward_hook(after)
    if isinstance(graft, Call) and calling not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(calling, with_kwargs=True)


# ---- out -----------------------------------------------------------------------------------------------------------


def detach(model: nn.Module, name: str) -> None:
    """Take one adaptation's grafts out; modules without any other become stock again."""
    gone: set[int] = set()
    for module in list(model.modules()):
        slots: Any = module._modules.get("peft")
        if slots is not None and name in slots:
            gone |= {id(graft) for graft in slots[name].values()}
            del slots[name]
            if not len(slots):
                del module.peft
    for module in model.modules():
        taps: list[Branch] = module.__dict__.get("peft_taps", [])
        taps[:] = [branch for branch in taps if id(branch) not in gone]
        if not taps:
            module.__dict__.pop("peft_taps", None)
    for module in model.modules():
        _tidy(module)


def _tidy(module: nn.Module) -> None:
    slots: Any = module._modules.get("peft")
    if slots is None and "peft_taps" not in module.__dict__:
        for hooks, hook in ((module._forward_pre_hooks, before), (module._forward_hooks, after)):
            _unhook(hooks, hook)
        for key in _unhook(module._forward_pre_hooks, calling):
            del module._forward_pre_hooks_with_kwargs[key]
    deltas = slots is not None and any(isinstance(g, Delta) for slot in slots.children() for g in slot.children())
    child_grafted = isinstance(module, nn.MultiheadAttention) and "peft" in module.out_proj._modules
    if not deltas and not child_grafted:
        restore_class(module)


def untag(model: nn.Module) -> None:
    for module in model.modules():
        _unhook(module._forward_hooks, rebuild.tag)


def _unhook(hooks: Any, hook: Any) -> list[int]:
    """Takes a hook out; the keys it had."""
    keys = [key for key, value in hooks.items() if value is hook]
    for key in keys:
        del hooks[key]
    return keys


# ---- the frozen part -----------------------------------------------------------------------------------------------


def silence(model: nn.Module) -> list[tuple[str, str, float]]:
    """Set every dropout and drop-path rate of the stock model to 0; the list says what to put back."""
    changed = []
    for path, module in model.named_modules():
        if is_inserted(path):
            continue
        name = {"DropPath": "drop_prob", "MultiheadAttention": "dropout"}.get(type(module).__name__)
        if isinstance(module, nn.MultiheadAttention):
            name = "dropout"
        if isinstance(module, nn.modules.dropout._DropoutNd):
            name = "p"
        if name is not None and (rate := getattr(module, name)):
            changed.append((path, name, rate))
            setattr(module, name, 0.0)
    return changed


@torch.no_grad()
def write_trained(model: nn.Module, adaptation: Adaptation, scale: float) -> None:
    """Stock weights that a method trains become original + scale · (trained − original)."""
    if not adaptation.trained:
        return
    parameters = dict(model.named_parameters())
    if adaptation.scale == 1.0:
        adaptation.kept = {key: parameters[key].detach().clone() for key in adaptation.trained}
    for key in adaptation.trained:
        original, trained = adaptation.originals[key], adaptation.kept[key]
        value = {0.0: original, 1.0: trained}.get(scale)
        parameters[key].copy_(torch.lerp(original, trained, scale) if value is None else value)
    if scale == 1.0:
        adaptation.kept = {}
    adaptation.scale = scale
