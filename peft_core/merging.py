"""Writing a change into stock weights: whether it may be written, and what else has to follow it."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from peft_core.anatomies import submodule
from peft_core.attach import modules_of, record_of, slots_of
from peft_core.errors import NotMergeable
from peft_core.grafts.graft import Delta, Graft, is_plain
from peft_core.grafts.head import OwnHead
from peft_core.grafts.shared import Shared
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.stock import like, whole_of


def tied_in(model: nn.Module) -> set[int]:
    """Ids of the parameters that several modules hold."""
    seen, tied = set(), set()
    for module in modules_of(model):
        for parameter in module._parameters.values():
            (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied - {id(None)}


def check_mergeable(
    module: nn.Module, slot: str, graft: Graft, name: str, chosen: list[str], tied: Collection[int] = ()
) -> None:
    """Raises NotMergeable for a graft of the adaptation `name` that cannot be written, while those `chosen` are."""
    if isinstance(graft, OwnHead | Shared):
        return
    if not isinstance(graft, Delta):
        raise NotMergeable(f"a {type(module).__name__} at role {slot} has no weight that could take what follows it.")
    weight_name, bias_name = names_of(module)
    weight, bias = module._parameters.get(weight_name), module._parameters.get(bias_name)
    if weight is None or (not is_plain(weight) and graft.packed_values(module) is None):
        raise NotMergeable(
            f"the weight of a {type(module).__name__} at role {slot} is quantised: nothing can be written to it; dequantise "
            "the model first (peft_core.dequantise), or load the adapter onto the model that was not quantised."
        )
    if id(weight) in tied or (bias is not None and id(bias) in tied):
        raise NotMergeable(
            f"the weight at role {slot} is tied to another module's, which would change with it: untie them."
        )
    if bias is None and (graft.shifts or graft.bias(None) is not None):
        raise NotMergeable(f"a {type(module).__name__} at role {slot} has no bias that could take the shift.")
    for owner, slots in slots_of(module).items():
        if owner == name:
            break
        if owner in chosen:
            continue
        for earlier in slots.values():
            if isinstance(earlier, Delta) and _overlap(earlier, graft) and not (earlier.commutes and graft.commutes):
                raise NotMergeable(
                    f"{owner} acts on the same weight before {name} (role {slot}): merge {owner} first, or both together."
                )


def _overlap(one: Delta, other: Delta) -> bool:
    if one.rows is None or other.rows is None:
        return True
    return max(one.rows[0], other.rows[0]) < min(one.rows[1], other.rows[1])


def names_of(module: nn.Module) -> tuple[str, str]:
    """What a changed module calls its weight and its bias."""
    return ("in_proj_weight", "in_proj_bias") if "in_proj_weight" in module._parameters else ("weight", "bias")


def write(model: nn.Module, module: nn.Module, delta: Delta, undo: list[tuple[Tensor, Tensor]]) -> None:
    weight_name, bias_name = names_of(module)
    weight, bias = module._parameters[weight_name], module._parameters.get(bias_name)
    assert weight is not None
    if not is_plain(weight):
        for now, value in delta.packed_values(module) or ():
            undo.append((now, now.detach().clone()))
            now.copy_(value)
        return
    before = whole_of(weight).detach().clone() if delta.shifts else weight
    trains, delta.training = delta.training, False  # what a change draws in training is not written
    try:
        for stock in (weight, bias):
            # what another adaptation remembers of a parameter that it trains is changed alike
            for now in (*_remembered(model, stock), stock):
                if now is not None:
                    full = whole_of(now)
                    new = changed_weight(full, [delta]) if stock is weight else changed_bias(full, [delta], before)
                    undo.append((now, now.detach().clone()))
                    now.copy_(like(new, now))  # type: ignore[arg-type]
    finally:
        delta.training = trains


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block parameters of these modules that FSDP2 cut into parts are whole."""
    parts = []
    try:
        for inner in (inner for module in modules for inner in module.modules()):
            for name, parameter in inner._parameters.items():
                if parameter is not None and (full := whole_of(parameter)) is not parameter:
                    parts.append((inner, name, parameter))
                    inner._parameters[name] = nn.Parameter(full, requires_grad=False)
        yield
    finally:
        for inner, name, parameter in parts:
            inner._parameters[name] = parameter


def _remembered(model: nn.Module, parameter: nn.Parameter | None) -> Iterator[Tensor]:
    """The original of a parameter, and its trained value where that is put aside, with the adaptation that trains it."""
    for adaptation in record_of(model).adaptations.values() if parameter is not None else ():
        for remembered in (adaptation.originals, adaptation.kept):
            yield from (value for key, value in remembered.items() if _parameter(model, key) is parameter)


def _parameter(model: nn.Module, key: str) -> nn.Parameter | None:
    path, _, name = key.rpartition(".")
    module = submodule(model, path) if path else model
    return None if module is None else module._parameters.get(name)


def replace(model: nn.Module, module: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = new
