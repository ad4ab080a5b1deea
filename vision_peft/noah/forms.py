"""What the core builds in each block at each width of a space: the shapes to slice by, and what a subnet costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from peft_core.anatomies import anatomy_of
from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from vision_peft.methods.noah import part
from vision_peft.noah.space import Space, Subnet

NAME = "noah"
"""Of the adaptation."""


@dataclass
class Form:
    """One method in one block at one width, with no weights in it.

    Args:
        grafts: paths of the grafts.
        shapes: path of a parameter or buffer -> its shape.
        plain: path of a module -> its numbers, e.g. a scale that depends on the rank.
        parameters: how many the method inserts here.
    """

    grafts: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: int = 0


class Forms:
    """All forms of a space on one backbone; `count` is exact, because the core itself makes what is counted.

    Raises:
        PeftError: the backbone cannot hold the space, or a method's narrow form is no slice of its wide one.
    """

    def __init__(self, model: nn.Module, space: Space) -> None:
        (paths,) = anatomy_of(model).blocks.values()
        self.space, self.blocks = space, len(paths)
        space.check_depth(self.blocks)
        self.table: dict[tuple[int, int, int], Form] = {}
        for number, name in enumerate(space.methods):
            for block in range(self.blocks):
                for width in reversed(space.dims):
                    row = [width if each == block else 0 for each in range(self.blocks)]
                    found = form(model, part(name, row, space.dropout, space.settings.get(name, {})))
                    self.table[number, block, width] = found
                    _check_slice(name, width, found, space.dims[-1], self.table[number, block, space.dims[-1]])

    def of(self, subnet: Subnet) -> list[Form]:
        """The forms of a subnet, without those of absent methods."""
        return [
            self.table[number, block, width]
            for number, row in enumerate(subnet)
            for block, width in enumerate(row)
            if width
        ]

    def count(self, subnet: Subnet) -> int:
        """Inserted parameters of the exported subnet, as `count_parameters` gives them."""
        return sum(each.parameters for each in self.of(subnet))

    def check_budget(self, budget: int | None) -> int:
        """The budget; that of the largest subnet where None is given.

        Raises:
            PeftError: no subnet fits, or every one does with room to spare.
        """
        least = self.count(self.space.smallest(self.blocks))
        most = self.count(self.space.largest(self.blocks))
        if budget is None:
            return most
        if not least <= budget <= most:
            side = "below the smallest" if budget < least else "above the largest"
            raise PeftError(
                f"a budget of {budget:,} parameters is {side} subnet of this space: the smallest inserts {least:,}, the "
                f"largest {most:,}."
            )
        return budget


def form(model: nn.Module, method: Method) -> Form:
    """What a method would insert into a stock model, which stays as it is."""
    plan, found = Plan(model, anatomy_of(model), method), Form()
    with torch.random.fork_rng(devices=[]):
        method.install(plan)
    if plan.trained:
        raise PeftError(f"{method.name} trains stock weights, which have no width: leave it out of the space.")
    for path, slot, graft in plan.grafts:
        root = f"{path}.peft.{NAME}.{slot}"
        found.grafts.append(root)
        tensors = [*graft.named_parameters(), *graft.named_buffers()]
        found.shapes |= {f"{root}.{name}": tuple(tensor.shape) for name, tensor in tensors}
        for name, module in graft.named_modules():
            numbers = {k: v for k, v in vars(module).items() if type(v) in (int, float) and k != "factor"}
            found.plain[f"{root}.{name}" if name else root] = numbers
        found.parameters += sum(parameter.numel() for parameter in graft.parameters())
    return found


def _check_slice(name: str, width: int, narrow: Form, widest: int, wide: Form) -> None:
    fits = narrow.shapes.keys() == wide.shapes.keys() and all(
        len(shape) == len(wide.shapes[key]) and all(n <= most for n, most in zip(shape, wide.shapes[key], strict=True))
        for key, shape in narrow.shapes.items()
    )
    if not fits:
        raise PeftError(
            f"{name} of width {width} is no part of one of width {widest}, so a supernet cannot hold both: leave {name} "
            "out of the space."
        )
