"""Side networks: they read features of the frozen model, which never runs backward, and their result goes where it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from peft_core.grafts.calls import state
from peft_core.grafts.graft import Graft


@dataclass
class Tap:
    """What a module receives, kept for a side network: `reads` says which argument, `key` where the state of a forward has
    it."""

    reads: int | str = 0
    key: str = ""


class Side(Graft):
    """y ← net([h_1, …, h_n, y]) at a module's output, or y ← y + factor · net(…): h are what the taps read, all detached."""

    def __init__(self, net: nn.Module, taps: Sequence[Tap], adds: bool = False) -> None:
        super().__init__()
        self.net, self.taps, self.adds = net, list(taps), adds
        self.scalable = adds  # type: ignore[misc]

    def named(self, adaptation: str, path: str, slot: str) -> None:
        for number, tap in enumerate(self.taps):
            tap.key = f"{adaptation}/{path}/{slot}/{number}"

    def after(self, y: Tensor) -> Tensor:
        features = [state().pop(tap.key).detach() for tap in self.taps]
        z = self.net([*features, y.detach()]).to(y.dtype)
        if not self.adds:
            return z
        return y + (z if self.factor == 1.0 else z * self.factor)
