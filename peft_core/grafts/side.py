"""Side networks: they read features of the frozen model, which never runs backward, and their result goes where it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
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

    alone = False
    key: str = ""

    def __init__(self, net: nn.Module, taps: Sequence[Tap], adds: bool = False) -> None:
        super().__init__()
        self.net, self.taps, self.adds = net, list(taps), adds
        self.scalable = adds  # type: ignore[misc]

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{path}/{slot}"
        for number, tap in enumerate(self.taps):
            tap.key = f"{adaptation}/{path}/{slot}/{number}"

    def before(self, x: Tensor) -> Tensor:
        """What the taps read is at hand here; x itself keeps it for when its module runs again under checkpointing."""
        here = state()
        features = [here.pop(tap.key, None) for tap in self.taps]
        if any(feature is None for feature in features):
            found = {} if torch.compiler.is_compiling() else getattr(x, "_peft_features", {})
            if self.key not in found:
                raise PeftError(
                    "a side network needs the blocks before its own in one forward: run the whole model, and checkpoint "
                    "with use_reentrant=False."
                )
            features = found[self.key]
        else:
            features = [feature.detach() for feature in features]  # type: ignore[union-attr]
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                x._peft_features = {**getattr(x, "_peft_features", {}), self.key: features}  # type: ignore[attr-defined]
        here[self.key] = features
        return x

    def after(self, y: Tensor) -> Tensor:
        features = state().pop(self.key)
        z = self.net([*features, y.detach()]).to(y.dtype)
        if not self.adds:
            return z
        return y + (z if self.factor == 1.0 else z * self.factor)
