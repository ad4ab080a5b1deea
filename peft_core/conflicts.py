"""What an adaptation asks for that cannot be had beside those that there are."""

from torch import nn

from peft_core.attach import Record, grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import is_plain
from peft_core.grafts.stand_in import StandIn
from peft_core.method import Plan


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


def _standing(model: nn.Module, name: str) -> list[str]:
    paths = {id(module): path for path, module in model.named_modules()}
    return [paths[id(module)] for module, _, graft in grafts_named(model, name) if isinstance(graft, StandIn)]


def _check_stands(model: nn.Module, known: Record, name: str, plan: Plan, trained: list[str]) -> None:
    """Weights in whose place others stand do not train: neither those of before nor the plan's own."""
    there = [(path, a.name) for a in known.adaptations.values() for path in _standing(model, a.name)]
    own = [(path, name) for path, _, graft in plan.grafts if isinstance(graft, StandIn)]
    others = [key for a in known.adaptations.values() for key in a.trained]
    for places, keys in ((there, trained), (own, [*others, *trained])):
        for path, owner in places:
            if train := [key for key in keys if key.rpartition(".")[0] == path and not key.endswith("bias")]:
                raise PeftError(
                    f"{train[0]} is to train, and {owner} puts other numbers in its place: choose other blocks or targets "
                    "for one of them."
                )
