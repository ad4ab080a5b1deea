"""What a method may want besides its forward: six calls that a training loop makes, each a method of `Method`.

    prepare(model, losses)                      # once, before the optimiser: losses is an iterable of batches' losses
    optimiser = AdamW(parameter_groups(model, lr, weight_decay))
    for step, batch in enumerate(batches):
        (loss(model, batch) + penalty(model)).backward()
        before_step(model)
        optimiser.step()
        after_step(model, Progress(step + 1, steps))
        optimiser.zero_grad()
    finish(model)

They do nothing for methods that want nothing. What a method has to remember between steps it keeps in `memory(model, self)`,
which `state` and `load_state` carry through a checkpoint. The programs' training makes these calls by itself.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_core.attach import Adaptation, Record, grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.shared import Shared
from peft_core.passes.losses import Losses as Losses
from peft_core.passes.losses import given
from peft_core.passes.losses import labelled as labelled
from peft_core.passes.losses import named_losses as named_losses
from peft_core.passes.losses import samples_of as samples_of
from peft_core.passes.losses import singly as singly

if TYPE_CHECKING:
    from peft_core.grafts.graft import Graft
    from peft_core.method import Method


class Progress(float):
    """How much of the training is done, in (0, 1], after `step` of `steps` steps."""

    step: int
    steps: int

    def __new__(cls, step: int, steps: int) -> "Progress":
        if not 0 <= step <= steps or not steps:
            raise PeftError(f"step {step} of {steps} is no progress: count steps from 1, after each.")
        self = super().__new__(cls, step / steps)
        self.step, self.steps = step, steps
        return self


def prepare(model: nn.Module, losses: Iterable[Any], again: bool = False) -> None:
    """What methods want to know of the data before training: sensitivities, Fisher information, starts from inputs.

    Args:
        losses: one loss a batch, each computed only when it is asked for, so that a method may stop early; a method may call
            `backward()` on it. Gradients are gone afterwards. `Losses` offers single samples, and several passes, too.
        again: before a later epoch, for methods that want it before each (`wants(model, "prepare", again=True)`).

    Raises:
        PeftError: no losses, or losses that can be gone through once where a method does so again.
    """
    waiting = [each for each in _adaptations(model) if _prepares(each[1], again)]
    for number, (adapted, adaptation) in enumerate(waiting, 1):
        later = [] if again else [name.name for owner, name in waiting[number:] if owner is adapted]
        with _without(adapted, later):  # what has not chosen yet cannot act
            adaptation.method.prepare(adapted, given(losses, adaptation.method.name))
    if wants(model, "prepare", again):
        model.zero_grad(set_to_none=True)


@contextmanager
def _without(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Within the block these adaptations do nothing."""
    off = [graft for name in names for _, _, graft in grafts_named(model, name) if graft.enabled]
    try:
        for graft in off:
            graft.enabled = False
        yield
    finally:
        for graft in off:
            graft.enabled = True


def parameter_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Everything that trains, as groups for an optimiser: those that methods ask for, then what is left, with weight decay on
    matrices and none on biases and other vectors.

    Raises:
        PeftError: two groups hold one parameter.
    """
    groups = [
        dict(group)
        for adapted, adaptation in _adaptations(model)
        for group in adaptation.method.parameter_groups(adapted, lr, weight_decay)
    ]
    taken: set[int] = set()
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
        if twice := taken & {id(p) for p in group["params"]}:
            raise PeftError(f"{len(twice)} parameters stand in two groups of an optimiser: give each to one.")
        taken |= {id(p) for p in group["params"]}
    left = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups.append({"params": [p for p in left if p.ndim > 1], "lr": lr, "weight_decay": weight_decay})
    groups.append({"params": [p for p in left if p.ndim <= 1], "lr": lr, "weight_decay": 0.0})
    return [{"lr": lr, "weight_decay": weight_decay} | group for group in groups if group["params"]]


def instances(model: nn.Module) -> int:
    """Over how many forwards of one batch the mean of the losses is taken, because methods draw something for each."""
    return max((adaptation.method.forwards() for _, adaptation in _adaptations(model)), default=1)


def penalty(model: nn.Module) -> Tensor | float:
    """What methods add to the loss; 0.0 where none adds anything."""
    found = [a.method.penalty(adapted) for adapted, a in _adaptations(model) if a.method.wants("penalty")]
    return sum(found, 0.0)


def before_step(model: nn.Module) -> None:
    """What methods do to the gradients that an optimiser step is about to use: after they are all there, and clipped."""
    with torch.no_grad():
        for adapted, adaptation in _adaptations(model):
            adaptation.method.before_step(adapted)


def after_step(
    model: nn.Module, progress: float, losses: Iterable[Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:  # fmt: skip
    """What methods do after an optimiser step, while the gradients of that step are still there; some prepare once more.

    Args:
        progress: how much of the training is done, (0, 1]; a `Progress` tells the steps too.
        losses, optimizer: of `prepare` and of the loop, for methods that prepare again after some steps.
    """
    with torch.no_grad():
        for adapted, adaptation in _adaptations(model):
            adaptation.method.after_step(adapted, progress)
    if not prepares_again(model, progress):
        return
    for adapted, adaptation in _adaptations(model):
        if adaptation.method.prepares_again(progress):
            if losses is None or optimizer is None:
                words = "looks at the training data again after some steps: call after_step(model, progress, losses, optimizer)"
                raise PeftError(f"{adaptation.method.name} {words}, with losses as for prepare.")
            with torch.enable_grad():
                adaptation.method.prepare(adapted, given(losses, adaptation.method.name))
            _follow(optimizer)
    model.zero_grad(set_to_none=True)


def prepares_again(model: nn.Module, progress: float) -> bool:
    """Whether `after_step` will want losses and optimiser at this step."""
    return any(adaptation.method.prepares_again(progress) for _, adaptation in _adaptations(model))


def _follow(optimizer: torch.optim.Optimizer) -> None:
    """What an optimiser remembers of an entry goes where the entry went (`came_from` of its parameter)."""
    for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
        at: Tensor | None = parameter.__dict__.pop("came_from", None)
        known = optimizer.state.get(parameter)
        if at is None or not known:
            continue
        for key, value in known.items():
            if isinstance(value, Tensor) and value.dim():
                moved = value.new_zeros(len(at))
                moved[at >= 0] = value[at[at >= 0]]
                known[key] = moved


def finish(model: nn.Module) -> None:
    """What methods do when training has ended, before the adapter is saved: fold, prune, average."""
    with torch.no_grad():
        for adapted, adaptation in _adaptations(model):
            adaptation.method.finish(adapted)


def serve(model: nn.Module, task: str) -> None:
    """Tells methods which of a run's tasks the next forwards are of, in training and in use."""
    for adapted, adaptation in _adaptations(model):
        adaptation.method.serve(adapted, task)


def wants(model: nn.Module, call: str, again: bool = False) -> bool:
    """Whether a method of this model does something at a call ("prepare", "penalty" …), with `again` at every epoch's."""
    return who_wants(model, call, again) is not None


def who_wants(model: nn.Module, call: str, again: bool = False) -> str | None:
    """The name of a method of this model that does something at a call, as `wants` has it."""
    for _, each in _adaptations(model):
        if _prepares(each, again) if call == "prepare" else each.method.wants(call):
            return each.method.name
    return None


def _prepares(adaptation: Adaptation, again: bool) -> bool:
    return adaptation.method.wants("prepare") and (adaptation.method.prepares_each_epoch or not again)


# ---- what a method uses --------------------------------------------------------------------------------------------


def memory(model: nn.Module, method: "Method") -> dict[str, Any]:
    """What a method keeps between steps on a model: tensors, numbers, words and lists and dicts of them."""
    return adaptation_of(model, method).memory


def own_grafts(model: nn.Module, method: "Method", kind: type["Graft"] | None = None) -> Iterator[Any]:
    """The method's grafts on a model, those of a kind, in the order of the modules."""
    for _, _, graft in grafts_named(model, adaptation_of(model, method).name):
        if kind is None or isinstance(graft, kind):
            yield graft


def forget_shared(model: nn.Module, method: "Method") -> None:
    """Takes out what the method's grafts shared, when they need it no longer."""
    slots: Any = model._modules.get("peft")
    name = adaptation_of(model, method).name
    own = slots[name]
    for slot in [slot for slot, graft in own.items() if isinstance(graft, Shared)]:
        del own[slot]
    if not len(own):
        del slots[name]
    if not len(slots):
        del model._modules["peft"]


def adaptation_of(model: nn.Module, method: "Method") -> Adaptation:
    for adapted, adaptation in _adaptations(model):
        if adapted is model and adaptation.method is method:
            return adaptation
    raise PeftError(f"{method.name} is no adaptation of this model.")


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What methods keep between steps, by adaptation; for a checkpoint."""
    return {adaptation.name: adaptation.memory for _, adaptation in _adaptations(model) if adaptation.memory}


def load_state(model: nn.Module, kept: dict[str, dict[str, Any]]) -> None:
    """Gives methods back what `state` held."""
    for _, adaptation in _adaptations(model):
        adaptation.memory.clear()
        adaptation.memory.update(kept.get(adaptation.name, {}))


def _adaptations(model: nn.Module) -> Iterator[tuple[nn.Module, Adaptation]]:
    """Every adaptation of the model and of adapted models inside it."""
    for module in list(model.modules()):
        record: Record | None = module.__dict__.get("_peft_record")
        for adaptation in list(record.adaptations.values()) if record is not None else ():
            yield module, adaptation
