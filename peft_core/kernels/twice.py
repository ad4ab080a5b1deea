"""What the kernels with a backward of their own have in common: a second derivative, and rows whose division loses digits."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from peft_core.errors import PeftError

SMALL, FAR, SAMPLE = 1e-3, 2.0, 64


def transforms_are_active() -> bool:
    """Whether vmap, grad or jvp of torch.func run: kernels with a backward of their own give way to plain operations."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_differentiated() -> bool:
    """Within a backward pass: whether its result will be differentiated again (`create_graph=True`)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gradients(run: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor, was_cast: bool) -> list[Tensor | None]:
    """The gradients of run(*inputs) for those of its inputs that need one, by plain operations that autograd follows."""
    if was_cast:
        raise PeftError("a gradient of a gradient under autocast needs the plain path: leave autocast for that step.")
    wanted = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(run(*inputs), wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if isinstance(value, Tensor) and value.requires_grad else None for value in inputs]


@torch.no_grad()
def small_rows(divisor: Annotated[Tensor, "out"]) -> Annotated[Tensor | None, "weak"]:
    """Indices of the outputs y = d ⊙ z from which z cannot be won back, as |d| is near 0. None where there are none."""
    return _found(divisor.abs() < SMALL)


@torch.no_grad()
def weak_rows(
    shift: Annotated[Tensor | None, "out"],
    divisor: Annotated[Tensor, "out"],
    dtype: torch.dtype,
    spread: Callable[[], Annotated[Tensor, "out"]],
) -> Annotated[Tensor | None, "weak"]:
    """As `small_rows`, of y = d ⊙ z + shift: also those where the shift, rounded to 16 bits with y, leaves no digits of z.

    spread: gives the standard deviation of d ⊙ z on a sample, (out); asked where digits are few.
    """
    weak = divisor.abs() < SMALL
    if shift is not None and torch.finfo(dtype).bits <= 16:
        weak = weak | (shift.abs() > FAR * spread())
    return _found(weak)


def _found(weak: Tensor) -> Tensor | None:
    found = weak.nonzero().flatten()
    return found if len(found) else None


@torch.no_grad()
def spread_of(x: Annotated[Tensor, "... in"], weight: Annotated[Tensor, "out in"]) -> Annotated[Tensor, "out"]:
    """The standard deviation of x Wᵀ over some rows of x, evenly apart: (out)."""
    rows = x.detach().reshape(-1, x.shape[-1])
    rows = rows[:: max(1, len(rows) // SAMPLE)].to(weight.dtype)
    if not len(rows):
        return weight.new_zeros(len(weight))
    z = (rows - rows.mean(0)) @ weight.t()
    return z.square().mean(0).sqrt()
