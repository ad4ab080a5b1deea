"""A linear's input need not be kept for backward where it can be made again from what its maker keeps anyway.

LayerNorm and GELU keep their input x for their own backward. `tag`, a forward hook, writes on their output y how to make
it again; a low-rank linear that receives y then keeps x, which costs nothing, in place of y.
"""

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


def make_again(maker: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    with torch.no_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        return maker.forward(x)
