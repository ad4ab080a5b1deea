"""A layer's input need not be kept for backward where it can be made again from what its maker keeps anyway.

Norms and GELU or SiLU keep their input x for their own backward, a product a ⊙ b of two tensors keeps both (gated
feed-forward layers end in one). `tag`, a forward hook, writes on a norm's or activation's output y how to make it again; of
a product autograd itself knows. A low-rank layer that receives y then keeps x, or a and b, which cost nothing, in place of y.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Activations that keep their input, not their output (as ReLU does).
_ACTIVATIONS = (nn.GELU, nn.SiLU)
_ACTIVATION_NAMES = {"GELUTanh", "QuickGELU", "QuickGELUActivation", "GELUActivation", "NewGELUActivation"}


class Recipe:
    """y = make(*kept), under autocast to `dtype` where it is not None. `readers` layers keep `kept` in place of y."""

    def __init__(self, make: Callable[..., Tensor], dtype: torch.dtype | None, by_rows: bool):
        self.make, self.dtype, self.by_rows = make, dtype, by_rows
        self.readers = self._read = 0
        self._made: Tensor | None = None

    def again(self, kept: tuple[Tensor, ...]) -> Tensor:
        device = kept[0].device.type
        with torch.no_grad(), torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            return self.make(*kept)

    def shared(self, kept: tuple[Tensor, ...]) -> Tensor:
        """y, made once for all its readers (q, k and v), whose backward passes follow one another."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # in a backward that is differentiated again
            return self.make(*kept)
        y = self.again(kept) if self._made is None else self._made
        self._read = (self._read + 1) % self.readers
        self._made = y if self._read else None
        return y


class Source(NamedTuple):
    """How y was made, with the versions that x and y had then."""

    recipe: Recipe
    x: Tensor
    x_version: int
    y_version: int


def autocast_dtype(device_type: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def keeps_its_input(module: nn.Module) -> bool:
    return isinstance(module, _NORMS + _ACTIVATIONS) or type(module).__name__ in _ACTIVATION_NAMES


def tag(module: nn.Module, args: tuple, output: Tensor) -> None:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    x = args[0]
    # where x needs no gradient the maker keeps nothing
    if x.requires_grad and isinstance(output, Tensor) and output is not x:
        recipe = Recipe(module.forward, autocast_dtype(x.device.type), works_by_rows(module))
        output._peft_source = Source(recipe, x, x._version, output._version)  # type: ignore[attr-defined]


def works_by_rows(module: nn.Module) -> bool:
    """Whether each row of the output comes from that row of the input alone."""
    shape = getattr(module, "normalized_shape", None)
    return len(shape) == 1 if shape is not None else not isinstance(module, nn.GroupNorm)


def kept_for(y: Tensor) -> tuple[Recipe | None, tuple[Tensor, ...]]:
    """What a layer that reads y keeps for its backward, and how y comes from it: y itself where nothing else is known."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None, (y,)
    source: Source | None = getattr(y, "_peft_source", None)
    if source is None:
        recipe, kept = _of_product(y)
    elif source.x._version == source.x_version and y._version == source.y_version:
        recipe, kept = source.recipe, (source.x,)
    else:
        recipe, kept = None, (y,)
    if recipe is not None:
        recipe.readers += 1
    return recipe, kept


def keep(ctx: Any, x: Tensor, recipe: Recipe | None, kept: tuple[Tensor, ...], dtype: torch.dtype | None,
         *others: Tensor | None) -> None:  # fmt: skip
    """Of a layer's forward: x as it was read (under autocast to `dtype` where it is not None), or what it is made of, and other
    tensors, for `kept_of` in its backward."""
    ctx.recipe, ctx.kept, ctx.dtype, ctx.was_cast = recipe, len(kept), x.dtype, dtype is not None
    ctx.save_for_backward(*(kept if recipe else (x,)), *others)


def kept_of(ctx: Any) -> tuple[tuple[Tensor, ...], Any]:
    """What `keep` kept of x, for `whole` and `pieces`, and the others; unpacked once, as checkpointing allows no more."""
    saved = ctx.saved_tensors
    return saved[: ctx.kept], saved[ctx.kept :]


def cast_of(new: Tensor | None, weight: Tensor) -> Tensor | None:
    """A changed weight that autocast had cast, which is kept, as autocast keeps the frozen linear's; others are formed again."""
    return None if new is None or new.dtype == weight.dtype else new


def _of_product(y: Tensor) -> tuple[Recipe | None, tuple[Tensor, ...]]:
    node: Any = y.grad_fn
    if node is None or node.name() != "MulBackward0" or y._version or _saved_tensors_are_hooked():
        return None, (y,)
    factors = node._saved_self, node._saved_other
    if any(factor is None or factor.shape != y.shape or factor.dtype != y.dtype for factor in factors):
        return None, (y,)
    return Recipe(torch.mul, None, by_rows=True), factors


def _saved_tensors_are_hooked() -> bool:
    """Under checkpointing reading what a node saved would already run its forward again."""
    top: Any = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


PIECE = 2**19
"""Elements of a piece: 2 MB in float32, which stays in the cache."""


def whole(recipe: Recipe | None, kept: tuple[Tensor, ...]) -> Tensor:
    """The input that `kept_for` spoke of."""
    return kept[0] if recipe is None else recipe.shared(kept)


def pieces(recipe: Recipe | None, kept: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """That input as rows N D, some after another: on a CPU a piece is read and made again in the cache, and no memory is
    asked for the whole, whose first touch costs more than GELU does."""
    on_cpu = kept[0].device.type == "cpu" and not torch.compiler.is_compiling()
    if recipe is not None and (not on_cpu or not recipe.by_rows or recipe.readers > 1):
        kept, recipe = (recipe.shared(kept),), None
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in kept]
    if not on_cpu or rows[0].numel() <= PIECE:
        yield rows[0] if recipe is None else recipe.again(tuple(rows))
        return
    for piece in zip(*(tensor.split(max(1, PIECE // tensor.shape[1])) for tensor in rows), strict=True):
        yield piece[0] if recipe is None else recipe.again(piece)
