"""What decides the features of a text tower, read whole: features may be kept as long as none of it changes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (bool, int, float, str, tuple, type(None))


def state_of(modules: Iterable[nn.Module], tensors: Iterable[Tensor]) -> tuple | None:
    """Values of all parameters and buffers, classes, settings (a graft's factor, an activation) and hooks of the modules, and
    the values of the tensors; None where values cannot be read (under a functorch transform, while a graph is captured, of
    sharded and quantised tensors).

    Values are compared by what they are, not by who wrote them: writes to `.data`, which no version counter sees, count.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return None
    facts: list[Any] = []
    found: list[Tensor] = list(tensors)
    for module in {id(inner): inner for part in modules for inner in part.modules()}.values():
        settings = tuple((k, v) for k, v in module.__dict__.items() if isinstance(v, _PLAIN) or callable(v))
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        facts.append((type(module), settings, tuple(map(id, hooks))))
        found += [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    values = _values(found)
    return None if values is None else (repr(facts), *values)


def _values(tensors: list[Tensor]) -> tuple | None:
    sums: dict[torch.device, list[Tensor]] = {}
    facts = []
    for t in tensors:
        if is_functorch_wrapped_tensor(t) or is_traceable_wrapper_subclass(t):
            return None
        facts.append((tuple(t.shape), t.dtype, t.device, None if t.is_inference() else t._version))
        if t.is_meta:
            facts.append(id(t))
        elif t.numel():
            sums.setdefault(t.device, []).append(_bits(t))
    return tuple(facts), tuple(tuple(torch.stack(each).tolist()) for each in sums.values())


def _bits(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits read as 64-bit numbers: one read of memory."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(flat) // 8 * 8
    return flat[:whole].view(torch.int64).sum() + flat[whole:].sum()
