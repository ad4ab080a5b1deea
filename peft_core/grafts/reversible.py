"""A run of blocks that can be inverted: what a block receives is computed anew, in the backward pass, from what it gives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree
from torch.utils.checkpoint import get_device_states, set_device_states

from peft_core.anatomies import SubLayer
from peft_core.errors import PeftError
from peft_core.grafts.around import Around
from peft_core.grafts.calls import state
from peft_core.grafts.graft import Graft, argument, part_of, put_argument, put_output
from peft_core.grafts.shared import Reference
from peft_core.kernels.twice import transforms_are_active

_Map = Callable[[Tensor], Tensor]


class Reversible(Around):
    """y₁ = λ x₁ + f(x₂), y₂ = β x₂ + g(y₁) in place of a block: f or g is the block, the other one `change`, or f is the block up
    to its last residual step and g that step. With `swaps` the block after gets (y₂, y₁). In the run's first block x₁ = x₂ = x;
    what a block gives is (y₁ + y₂)/2.

    Args:
        change: a module, x to x; None where the block is halved (see `halves`).
        block_first: whether f is the block and g the change.
        factors: λ, β.
        comes, goes: the blocks before and behind, None where the run begins and ends.
        keeps: the pair is kept for the backward; others are computed from the next kept one.
        recomputes: False: ordinary autograd, which keeps what it likes.
    """

    scalable = False  # type: ignore[misc]
    alone = False  # type: ignore[misc]

    def __init__(self, change: nn.Module | None, block_first: bool, factors: tuple[float, float], swaps: bool, comes: str | None,
                 goes: str | None, keeps: bool, recomputes: bool) -> None:  # fmt: skip
        super().__init__()
        self.change = change
        self.block_first, self.factors, self.swaps = block_first, factors, swaps
        self.comes, self.goes, self.keeps, self.recomputes = comes, goes, keeps, recomputes
        self.key = ""

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{path}/half"
        self.comes, self.goes = (None if key is None else f"{adaptation}/{key}" for key in (self.comes, self.goes))

    def around(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        x = argument(module, args, kwargs, self.arg)
        args, kwargs = put_argument(module, args, kwargs, self.arg, None)  # the steps must not keep x
        outputs: list[Any] = []

        def block(x: Tensor) -> Tensor:
            changed, named = put_argument(module, args, kwargs, self.arg, x)
            output = forward(*changed, **named)
            if not outputs:  # of the forward pass, for what the block gives besides its stream
                outputs.append(put_output(output, self.output, None))  # type: ignore[arg-type]
            return part_of(output, self.output)

        x1, x2, given = self._pair(x)
        trained = _trained(module)
        inverts = self.recomputes and bool(trained) and not _must_be_plain(module, args, kwargs, x)
        if self.change is None:
            maps: Any = (partial(_half, block, self.key, 0), partial(_half, block, self.key, 1))
        else:
            maps = (block, self.change) if self.block_first else (self.change, block)
        step = _Step(maps, self.factors, self.swaps, not inverts or self.keeps, given)
        y1, y2 = _Inverted.apply(step, x1, x2, *trained) if inverts else step.forward(x1, x2)  # type: ignore[misc]
        y = (y1 + y2) / 2
        if self.goes is not None:
            pair = (y2, y1) if self.swaps else (y1, y2)
            state()[self.goes] = y.detach(), (*pair, step if inverts else None)
            if not torch.compiler.is_compiling():  # for a block that runs again under checkpointing
                y._peft_pair = self.goes, (*pair, step if inverts else None)  # type: ignore[attr-defined]
        return put_output(outputs[0], self.output, y) if outputs[0] is not None else y

    def _pair(self, x: Tensor) -> "tuple[Tensor, Tensor, _Step | None]":
        if self.comes is None:
            return x, x, None
        mean, pair = state().pop(self.comes, (None, None))
        key, tagged = (None, None) if torch.compiler.is_compiling() else getattr(x, "_peft_pair", (None, None))
        if tagged is not None and key == self.comes:
            return tagged
        if mean is None or pair is None:
            raise PeftError(
                "reversible blocks hand a pair on and need the blocks before in one forward: run the whole model, and checkpoint "
                "with use_reentrant=False."
            )
        if not torch.compiler.is_compiling() and not (x.shape == mean.shape and torch.equal(x.detach(), mean)):
            raise PeftError(
                "something joins the stream between reversible blocks, which cannot be inverted then: choose other blocks for "
                "it, or for the reversible ones."
            )
        return pair


class _Reached(Exception):
    """The second half of a block is, with what it receives."""

    def __init__(self, key: str, x: Tensor) -> None:
        super().__init__(key)
        self.key, self.x = key, x


def _half(block: _Map, key: str, which: int, x: Tensor) -> Tensor:
    here = state()
    here[key] = which
    try:
        return block(x)
    except _Reached as reached:
        if reached.key != key:
            raise
        return reached.x
    finally:
        here.pop(key, None)


class Half(Graft):
    """Of a block that is halved: what a step adds is 0 while the second half runs; with `ends`, where the last step receives the
    stream, the first half is over."""

    order = -9
    scalable = False
    alone = False

    def __init__(self, block: str, ends: bool) -> None:
        super().__init__()
        self.key, self.ends = block, ends

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{self.key}/half"

    def before(self, x: Tensor) -> Tensor:
        if self.ends and state().get(self.key) == 0:
            raise _Reached(self.key, x)
        return x

    def after(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y) if not self.ends and state().get(self.key) == 1 else y


def halves(block: str, steps: Sequence[SubLayer]) -> list[tuple[str, Half]]:
    """Grafts, each with its module, that let a block with these residual steps run up to its last step, or that step alone."""
    *before, last = steps
    found = [(last.entry, Half(block, ends=True)), *((str(step.gate), Half(block, ends=False)) for step in before)]
    for step, (_, graft) in zip((last, *before), found, strict=True):
        graft.arg, graft.output = step.arg, step.output
    return found


def _trained(module: nn.Module) -> list[Tensor]:
    """What trains of all that a block reads, what it shares with others included."""
    found: dict[int, Tensor] = {}
    for part in module.modules():
        shared = [value() for value in vars(part).values() if isinstance(value, Reference)]
        tensors = [t for s in shared for t in (s.parameters() if isinstance(s, nn.Module) else (s,))]
        found |= {id(t): t for t in (*part._parameters.values(), *tensors) if t is not None and t.requires_grad}
    return list(found.values())


def _must_be_plain(module: nn.Module, args: tuple, kwargs: dict[str, Any], x: Tensor) -> bool:
    """Whether autograd itself has to see the block: compilers decide what they keep, function transforms, sharding and
    replicas hold other tensors in the backward pass, gradients go to further arguments, or numbers are too coarse to invert."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or transforms_are_active():
        return True
    if x.dtype not in (torch.float32, torch.float64) or getattr(module, "_is_replica", False):
        return True
    if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
        return True
    if any(not isinstance(p, nn.Parameter) for m in module.modules() for p in m._parameters.values() if p is not None):
        return True
    others = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t is not x]
    return any(t.requires_grad for t in others)


@dataclass
class _Step:
    """One block in one forward, with the step that gave what it receives."""

    maps: tuple[_Map, _Map]
    factors: tuple[float, float]
    swaps: bool
    keeps: bool
    given: "_Step | None"
    gives: tuple[Tensor, Tensor] | None = None
    """y₁, y₂, which the step after has computed in a backward pass."""
    draws: list["_Draws"] = field(default_factory=list)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = self._weighed(x1, 0) + self._run(0, x2)
        return y1, self._weighed(x2, 1) + self._run(1, y1)

    def _weighed(self, x: Tensor, which: int) -> Tensor:
        return x if self.factors[which] == 1.0 else x * self.factors[which]

    def _run(self, which: int, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():  # within a function that inverts
            self.draws.append(_Draws(x))
        return self.maps[which](x)

    def take(self, first: Tensor, second: Tensor) -> None:
        """What the block behind received."""
        self.gives = (second, first) if self.swaps else (first, second)

    def again(
        self, which: int, x: Tensor, grad: Tensor, trained: list[Tensor]
    ) -> tuple[Tensor, Any, list[Tensor | None]]:
        """maps[which](x) with the draws of before, and for a gradient there those of x and of what trains."""
        with torch.enable_grad(), self.draws[which].again():
            x = x.detach().requires_grad_()
            y = self.maps[which](x)
            found = torch.autograd.grad(y, [x, *trained], grad.to(y.dtype), allow_unused=True)
        return y.detach(), found[0], list(found[1:])


class _Inverted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, x1: Tensor, x2: Tensor, *trained: Tensor) -> tuple[Tensor, Tensor]:
        y = step.forward(x1, x2)
        ctx.step = step
        ctx.save_for_backward(*trained, *(y if step.keeps else ()))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy1: Tensor, dy2: Tensor) -> tuple:
        step: _Step = ctx.step
        tensors = list(ctx.saved_tensors)
        y = tuple(tensors[-2:]) if step.keeps else step.gives
        trained = tensors[:-2] if step.keeps else tensors
        step.gives = None
        if y is None:
            raise PeftError(
                "a loss that does not see the end of a run of reversible blocks cannot go back through it: keep every pair, or "
                "take what the last block gives."
            )
        y1, y2 = y
        g, d1, ours = step.again(1, y1, dy2, trained)
        dy1 = dy1 + d1
        x2 = (y2 - g) / step.factors[1]
        f, d2, more = step.again(0, x2, dy1, trained)
        if step.given is not None and not step.given.keeps:
            x1 = (y1 - f) / step.factors[0]
            step.given.take(x1, x2)
        dx2 = dy2 * step.factors[1] + d2
        grads = [a if b is None else b if a is None else a + b for a, b in zip(ours, more, strict=True)]
        return None, dy1 * step.factors[0], dx2, *grads


class _Draws:
    """The state of random numbers, and of autocast, at a point of the forward pass."""

    def __init__(self, x: Tensor) -> None:
        self.cpu, self.devices = torch.get_rng_state(), get_device_states(x)
        self.kind = x.device.type
        self.cast = torch.is_autocast_enabled(self.kind), torch.get_autocast_dtype(self.kind)

    @contextmanager
    def again(self) -> Iterator[None]:
        ids, states = self.devices
        cast, dtype = self.cast
        with (
            torch.random.fork_rng(ids, device_type=self.kind if ids else "cuda", enabled=True),
            torch.autocast(self.kind, dtype, enabled=cast),
        ):
            torch.set_rng_state(self.cpu)
            set_device_states(ids, states)
            yield
