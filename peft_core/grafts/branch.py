"""A branch: reads a point of the stream and is added at a later one."""

from typing import Any

from torch import Tensor, nn

from peft_core.grafts.calls import state
from peft_core.grafts.graft import Graft, argument, part_of, put_output


class Branch(Graft):
    """y ← y + factor · change(x): x is the module's own output (`read` False) or what another module received; with `joins`
    y ← y + factor · change(x + y), which is the stream behind a residual step that adds y to x.

    `reads` says which argument of that other module it is; `key` is where the state of a forward holds it in between.
    """

    key: str = ""
    reads: int | str = 0
    first: tuple[bool, bool] = (False, False)
    """Whether what change reads, and what it is added to, are pictures B D H W; change has D last."""

    def __init__(self, change: nn.Module, read: bool, joins: bool = False):
        super().__init__()
        self.change = change
        self.read, self.joins = read, joins

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{path}/{slot}"

    def after(self, y: Tensor) -> Tensor:
        x = state().pop(self.key) if self.read else y
        return self.add(y, x + y if self.joins else x)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """y + factor · change(x)."""
        reads, gives = self.first
        change = self.change(x.movedim(1, -1) if reads else x)
        if self.factor != 1.0:
            change = change * self.factor
        return y + (change.movedim(-1, 1) if gives else change).to(y.dtype)


class Given(Graft):
    """Lets a branch read what a module gives."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.__dict__["branch"] = branch

    def after(self, y: Tensor) -> Tensor:
        if self.branch.enabled:  # type: ignore
            state()[self.branch.key] = y  # type: ignore
        return y


class Beside(Graft):
    """y ← y + factor · change(x), x what the module itself receives."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        y = part_of(output, self.output)
        change = self.change(argument(module, args, kwargs, self.arg))
        return put_output(output, self.output, y + (change * self.factor).to(y.dtype))
