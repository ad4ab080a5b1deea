"""A linear's input need not be kept for backward where it can be made again from what its maker keeps anyway.

LayerNorm and GELU keep their input x for their own backward. `tag`, a forward hook, writes on their output y how to make
it again; a low-rank linear that receives y then keeps x, which costs nothing, in place of y.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Activations that keep their input, not their output (as ReLU does).
_ACTIVATIONS = (nn.GELU, nn.SiLU)
_ACTIVATION_NAMES = {"GELUTanh", "QuickGELU", "QuickGELUActivation", "GELUActivation", "NewGELUActivation"}


class Source(NamedTuple):
    """y = maker(x), with the versions both tensors had then and the autocast state it was made under."""

    maker: nn.Module
    x: Tensor
    x_version: int
    y_version: int
    autocast: torch.dtype | None


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
        output._peft_source = Source(  # type: ignore[attr-defined]
            module, x, x._version, output._version, autocast_dtype(x.device.type)
        )


def source_of(y: Tensor) -> Source | None:
    """How to make `y` again, or None where nothing says so or a tensor was changed in place since."""
    source: Source | None = getattr(y, "_peft_source", None)
    if source is None or source.x._version != source.x_version or y._version != source.y_version:
        return None
    return source


PIECE = 2**19
"""Elements of a piece: 2 MB in float32, which stays in the cache."""


def pieces(kept: Tensor, maker: nn.Module | None, autocast: torch.dtype | None) -> Iterator[Tensor]:
    """A linear's input x, N D, some rows after another: on a CPU a piece is read and made again in the cache, and no
    memory is asked for the whole, whose first touch costs more than GELU does. `kept` is x, or what `maker` makes it from."""
    on_cpu = kept.device.type == "cpu" and not torch.compiler.is_compiling()
    if maker is not None and not (on_cpu and works_by_rows(maker)):
        kept, maker = make_again(maker, kept, autocast), None
    rows = kept.reshape(-1, kept.shape[-1])
    each = max(1, PIECE // rows.shape[1]) if on_cpu else max(1, len(rows))
    for piece in rows.split(each):
        yield piece if maker is None else make_again(maker, piece, autocast)


def works_by_rows(maker: nn.Module) -> bool:
    """Whether each row of the output comes from that row of the input alone."""
    shape = getattr(maker, "normalized_shape", None)
    return len(shape) == 1 if shape is not None else not isinstance(maker, nn.GroupNorm)


def make_again(maker: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        return maker.forward(x)
