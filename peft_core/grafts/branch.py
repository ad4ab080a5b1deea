"""A branch: reads a point of the stream and is added at a later one."""

from torch import Tensor, nn

from peft_core.grafts.graft import Graft


class Branch(Graft):
    """y ← y + factor · change(x): x is the module's own output (`read` False) or what another module received."""

    def __init__(self, change: nn.Module, read: bool):
        super().__init__()
        self.change = change
        self.read = read
        self.point: Tensor | None = None

    def after(self, y: Tensor) -> Tensor:
        x, self.point = (self.point if self.read else y), None
        change = self.change(x)
        if self.factor != 1.0:
            change = change * self.factor
        return y + change.to(y.dtype)
