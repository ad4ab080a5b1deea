"""Grafts: the ways to join something to a frozen model without taking its modules apart.

A grafted module keeps its class's name, its parameters and their keys; it gains one submodule `peft`, which holds the
grafts by adaptation and by slot (`blocks.0.attn.qkv.peft.lora.q.A`). Weight changes swap the module's class for a subclass
whose parameters read as changed (`weight_changes`); everything else acts in two module-level hooks (`before`, `after`).
So deep copies, pickles, strict loading of stock checkpoints and one-graph compilation keep working.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Graft(nn.Module):
    """What is joined to a module: off while `enabled` is False, weighed by `factor` (see `set_scale`)."""

    scalable: ClassVar[bool] = True
    order: ClassVar[int] = 0
    enabled: bool
    factor: float

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.factor = 1.0

    def before(self, x: Tensor) -> Tensor:
        """What the module receives in place of x."""
        return x

    def after(self, y: Tensor) -> Tensor:
        """What leaves the module in place of y."""
        return y


class Delta(Graft):
    """A weight change: `forward(W) -> W'` on rows `rows` of a weight, `bias(b) -> b'` on the same rows of its bias.

    `kernel(x, W, b, deltas)` may compute a linear faster than F.linear(x, W', b'); it is used where all changes of a
    linear are of its type; `conv_kernel(module, x, delta)` likewise runs a convolution's only change, or gives None where
    it cannot. A change with `reads_input` cannot be written as a weight: `on_input` adds to the output.
    """

    kernel: ClassVar[Any] = None
    conv_kernel: ClassVar[Any] = None
    additive: ClassVar[bool] = False
    """W' = W + C, and `on_input(x, run)` computes C x without forming C."""
    needs_matrix: ClassVar[bool] = False
    """It factors a matrix or acts on inputs: the vectors of norms are refused."""
    rebuilds_input: ClassVar[bool] = False
    """Its kernel keeps an input's source where the input carries a tag (see `rebuild`)."""
    reads_input: bool = False

    def __init__(self, rows: tuple[int, int] | None = None):
        super().__init__()
        self.rows = rows

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        """Why changes of this class cannot act on rows of this module's weight; None where they can."""
        if isinstance(module, nn.Embedding) and cls.look_up is Delta.look_up:
            return "an embedding looks its rows up and multiplies nothing"
        if cls.needs_matrix and weight.dim() < 2:
            return f"a {type(module).__name__} has a vector for a weight, no matrix"
        return None

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(W) -> W'")

    def bias(self, bias: Tensor | None) -> Tensor | None:
        return bias

    def on_input(self, x: Tensor, run) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define on_input(x, run)")

    def look_up(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Of an embedding: the rows for these ids, from those that the stock table gives."""
        raise NotImplementedError(f"{type(self).__name__} must define look_up(ids, rows) to change an embedding")


def grafts(module: nn.Module, kind: type = Graft) -> Iterator[Any]:
    """The active grafts of a module, in order of installation."""
    slots = module._modules.get("peft")
    if slots is not None:
        for slot in slots.children():
            for graft in slot.children():
                if isinstance(graft, kind) and graft.enabled:
                    yield graft


def before(module: nn.Module, args: tuple) -> tuple:
    x = args[0]
    for branch in module.__dict__.get("peft_taps", ()):
        if branch.enabled:
            branch.point = x
    for graft in sorted(grafts(module), key=lambda graft: graft.order):
        x = graft.before(x)
    return (x, *args[1:])


def after(module: nn.Module, args: tuple, output: Any) -> Any:
    y = output[0] if isinstance(output, tuple) else output
    for graft in grafts(module):
        y = graft.after(y)
    return (y, *output[1:]) if isinstance(output, tuple) else y


def match(x: Tensor, parameter: Tensor) -> Tensor:
    """x in the parameter's precision, unless autocast takes care of it."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(parameter.dtype)
