"""Putting a plan's grafts into a model and taking them out again; what a model remembers of its adaptations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from peft_core.anatomies import refuse_wrapped
from peft_core.errors import PeftError
from peft_core.grafts.around import Around, Surrounded
from peft_core.grafts.attention import AdaptedAttention, Keyed, KeysValues, check_supported
from peft_core.grafts.classes import Changes, Reader, ReadWithin, restore_class, swap_class
from peft_core.grafts.graft import Delta, Graft, entering, is_plain, leaving
from peft_core.grafts.stand_in import StandIn
from peft_core.kernels import rebuild
from peft_core.method import Method, Plan


@dataclass
class Adaptation:
    """One adapt() call: its method, and the stock parameters it trains with their original values."""

    name: str
    method: Method
    trained: list[str] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, nn.Parameter] = field(default_factory=dict)
    """Trained parameters, while the model holds others for a moment (scale ≠ 1)."""
    scale: float = 1.0
    train_head: bool = True
    memory: dict[str, Any] = field(default_factory=dict)
    """What the method keeps between steps (see `lifecycle`)."""


@dataclass
class Record:
    """What an adapted model knows of itself; in `model.__dict__`, so that it is copied and pickled along."""

    adaptations: dict[str, Adaptation] = field(default_factory=dict)
    head_paths: list[str] = field(default_factory=list)
    required_grad: dict[str, bool] = field(default_factory=dict)
    silenced: list[tuple[str, str, float]] = field(default_factory=list)
    loaded: dict[str, Tensor] = field(default_factory=dict)
    """Original values of stock parameters that an adapter file held beside its adaptations' own."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """The stock model's, running statistics among them, as they came."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's, DistributedDataParallel's and DataParallel's wrappers."""
    names = {
        "OptimizedModule": "_orig_mod",
        "DistributedDataParallel": "module",
        "DataParallel": "module",
        "AveragedModel": "module",
    }
    while "_peft_record" not in model.__dict__ and (inner := names.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    return model


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


def slots_of(module: nn.Module) -> Mapping[str, Mapping[str, Graft]]:
    """Adaptation -> slot -> graft, in order of installation."""
    return module._modules.get("peft") or {}  # type: ignore[return-value]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """As `model.modules()` has them, without its generators within generators."""
    found: dict[int, nn.Module] = {}
    ahead = [model]
    while ahead:
        module = ahead.pop()
        if id(module) not in found:
            found[id(module)] = module
            ahead += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found.values())


def grafts_named(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str, Graft]]:
    """(module, slot, graft) of one adaptation."""
    for module in modules_of(model):
        slots = slots_of(module)
        if name in slots:
            for slot, graft in slots[name].items():
                yield module, slot, graft


def is_inserted(key: str) -> bool:
    """Whether a parameter's or buffer's dotted name is an adapter's."""
    return "peft" in key.split(".")


def inserted_by(key: str) -> str:
    """The adaptation that an inserted parameter belongs to."""
    parts = key.split(".")
    return parts[parts.index("peft") + 1]


# ---- in ------------------------------------------------------------------------------------------------------------


def check_slots(model: nn.Module, plan: Plan) -> None:
    """Raises PeftError for what cannot be attached, before anything is."""
    taken: set[tuple[str, str]] = set()
    for path, slot, _ in plan.grafts:
        if (path, slot) in taken:
            raise PeftError(f"{plan.method.name} joins two grafts to {path or 'the model'} in one slot ({slot}).")
        taken.add((path, slot))
        for owner in (model.get_submodule(path), _parent(model, path)):
            if isinstance(owner, nn.MultiheadAttention):
                check_supported(owner)


def check_conflicts(model: nn.Module, name: str, plan: Plan, trained: list[str]) -> None:
    """Raises PeftError for stock parameters `trained` that cannot train, and weights in whose place others cannot stand."""
    known: Record = model.__dict__.get("_peft_record") or Record()
    _check_trained(known, name, trained)
    _check_plain(model, name, trained)
    _check_stands(model, known, name, plan, trained)


def _check_trained(known: Record, name: str, trained: list[str]) -> None:
    for other in known.adaptations.values():
        if both := [key for key in trained if key in set(other.trained)]:
            more = f" and {len(both) - 1} more" if both[1:] else ""
            raise PeftError(
                f"{other.name} trains {both[0]}{more} already, and two adaptations cannot train one parameter: "
                f"choose other blocks or targets for {name}, or remove {other.name} first."
            )


def _check_plain(model: nn.Module, name: str, trained: list[str]) -> None:
    parameters = dict(model.named_parameters())
    if packed := [key for key in trained if key in parameters and not is_plain(parameters[key])]:
        raise PeftError(
            f"{name} trains {packed[0]}, which is quantised: train what runs beside it, or a model that "
            "is not quantised."
        )


def _check_stands(model: nn.Module, known: Record, name: str, plan: Plan, trained: list[str]) -> None:
    """Weights in whose place others stand do not train: neither those of before nor the plan's own."""
    own = {path: name for path, _, graft in plan.grafts if isinstance(graft, StandIn)}
    there = {
        path: owner
        for path, module in model.named_modules()
        for owner, slots in slots_of(module).items()
        if any(isinstance(graft, StandIn) for graft in slots.values())
    }
    others = [key for a in known.adaptations.values() for key in a.trained]
    for places, keys in ((there, trained), (own, [*others, *trained])):
        for key in keys:
            owner = places.get(key.rpartition(".")[0])
            if owner is not None and not key.endswith("bias"):
                raise PeftError(
                    f"{key} is to train, and {owner} puts other numbers in its place: choose other blocks or targets "
                    "for one of them."
                )


def attach(model: nn.Module, plan: Plan, name: str) -> None:
    for path, slot, graft in plan.grafts:
        module, parent = model.get_submodule(path), _parent(model, path)
        if isinstance(parent, nn.MultiheadAttention):
            swap_class(parent)  # its stock forward never calls out_proj
        if isinstance(graft, Delta):
            if not graft.called:
                swap_class(parent, Reader)
                swap_class(module, ReadWithin)
            swap_class(module)
        if isinstance(graft, KeysValues):
            swap_class(module, AdaptedAttention if isinstance(module, nn.MultiheadAttention) else Keyed)
        if isinstance(graft, Around):
            swap_class(module, Surrounded)
        if "peft" not in module._modules:
            module.add_module("peft", nn.ModuleDict())
        slots: Any = module.peft
        if name not in slots:
            slots[name] = nn.ModuleDict()
        slots[name][slot] = graft
        graft.named(name, path, slot)
        hook(module, reads=graft.acts_before(), writes=graft.acts_after())
    for path, reader in plan.taps:
        module = model.get_submodule(path)
        hook(module, reads=True)
        module.__dict__.setdefault("peft_taps", []).append((reader.key, reader.reads))
    if any(isinstance(graft, Delta) and graft.rebuilds_input for _, _, graft in plan.grafts):
        for module in model.modules():
            if rebuild.keeps_its_input(module) and rebuild.tag not in module._forward_hooks.values():
                # first of all hooks: what a later one changes is another tensor and carries no tag
                module.register_forward_hook(rebuild.tag, prepend=True)


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def hook(module: nn.Module, reads: bool = False, writes: bool = False) -> None:
    if reads and entering not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(entering, with_kwargs=True)
    if writes and leaving not in module._forward_hooks.values():
        module.register_forward_hook(leaving, with_kwargs=True)


# ---- out -----------------------------------------------------------------------------------------------------------


def detach(model: nn.Module, name: str) -> None:
    """Take one adaptation's grafts out; modules without any other become stock again."""
    for module in modules_of(model):
        slots: Any = module._modules.get("peft")
        if slots is not None and name in slots:
            del slots[name]
            if not len(slots):
                del module._modules["peft"]
        taps = module.__dict__.get("peft_taps")
        if taps is not None:
            taps[:] = [tap for tap in taps if tap[0].partition("/")[0] != name]
            if not taps:
                del module.__dict__["peft_taps"]
    for module in modules_of(model):
        _tidy(module)


def _tidy(module: nn.Module) -> None:
    if not slots_of(module) and "peft_taps" not in module.__dict__:
        unhook(module, entering, leaving)
    keyed = any(isinstance(graft, KeysValues) for slots in slots_of(module).values() for graft in slots.values())
    if not keyed:
        restore_class(module, Keyed)
    if not any(isinstance(graft, Around) for slots in slots_of(module).values() for graft in slots.values()):
        restore_class(module, Surrounded)
    if (
        not keyed
        and not _changed(module)
        and not (isinstance(module, nn.MultiheadAttention) and slots_of(module.out_proj))
    ):
        if not any(isinstance(child, ReadWithin) and _changed(child) for child in module.children()):
            restore_class(module, Changes)


def _changed(module: nn.Module) -> bool:
    return any(isinstance(graft, Delta) for slots in slots_of(module).values() for graft in slots.values())


def untag(model: nn.Module) -> None:
    for module in modules_of(model):
        unhook(module, rebuild.tag)


def unhook(module: nn.Module, *ours: Any) -> None:
    """Takes hooks out, by what they call."""
    for hooks, with_kwargs, always in (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, {}),
        (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
    ):
        for key in [key for key, value in hooks.items() if value in ours]:
            del hooks[key]
            with_kwargs.pop(key, None)
            always.pop(key, None)
