"""State of one forward: what grafts hand on to each other within it, kept apart for every thread and every call.

Nothing of a forward stands on a module, so several threads may run one model, and a forward that raised leaves nothing
behind: not on the model, and not in the state, which the model's own hooks open and always close. Where a part of a model
is called instead (`forward_features`, a block again under checkpointing), its grafts share what the thread has at hand.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

_OUTER, _ROOT = object(), object()
_STATE: ContextVar[dict[Any, Any] | None] = ContextVar("peft_core.forward", default=None)
_TRACED: dict[Any, Any] = {}
"""While a compiler traces a forward, which follows no context variable: the graph that it makes holds no state."""


def state() -> dict[Any, Any]:
    """The running forward's values, by keys that their grafts choose."""
    if torch.compiler.is_compiling():
        return _TRACED
    found = _STATE.get()
    if found is None:
        found = {}
        _STATE.set(found)
    return found


def root() -> nn.Module | None:
    """The adapted model whose forward runs (a replica of it under DataParallel); None outside of one."""
    found = None if torch.compiler.is_compiling() else _STATE.get()
    return None if found is None else found.get(_ROOT)


def opening(model: nn.Module, args: tuple) -> None:
    """The adapted model's forward pre-hook."""
    if torch.compiler.is_compiling():
        return
    outer = within = _STATE.get()
    while within is not None:  # a forward of this model that Ctrl-C ended, which calls no hook, is over
        within, outer = within.get(_OUTER), within.get(_OUTER) if within.get(_ROOT) is model else outer
    _STATE.set({_OUTER: outer, _ROOT: model})


def closing(model: nn.Module, args: tuple, output: Any) -> None:
    """The adapted model's forward hook, called whether or not the forward raised."""
    found = None if torch.compiler.is_compiling() else _STATE.get()
    if found is not None and found.get(_ROOT) is model:
        _STATE.set(found[_OUTER])
