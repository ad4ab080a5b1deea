"""State of one forward: what grafts hand on to each other within it, kept apart for every thread and every call.

Nothing of a forward stands on a module, so several threads may run one model, and a forward that raised leaves nothing
behind: not on the model, and not in the state, which the model's own hooks open and always close. Where a part of a model
is called instead (`forward_features`, a block again under checkpointing), its grafts share what the thread has at hand.
Compilers trace all of it, so a compiled block finds what an eager one left, and the other way round.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn

_OUTER, _ROOT = object(), object()


class _Here(threading.local):
    """Not a context variable: TorchDynamo follows this one."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}


_HERE = _Here()


def state() -> dict[Any, Any]:
    """The running forward's values, by keys that their grafts choose."""
    return _HERE.state


def root() -> nn.Module | None:
    """The adapted model whose forward runs (a replica of it under DataParallel); None outside of one."""
    return _HERE.state.get(_ROOT)


def opening(model: nn.Module, args: tuple) -> None:
    """The adapted model's forward pre-hook."""
    outer = within = _HERE.state
    while within is not None:  # a forward of this model that Ctrl-C ended, which calls no hook, is over
        within, outer = within.get(_OUTER), within.get(_OUTER) if within.get(_ROOT) is model else outer
    _HERE.state = {_OUTER: outer, _ROOT: model}


def closing(model: nn.Module, args: tuple, output: Any) -> None:
    """The adapted model's forward hook, called whether or not the forward raised."""
    if _HERE.state.get(_ROOT) is model:
        _HERE.state = _HERE.state[_OUTER]


# ---- from block to block -------------------------------------------------------------------------------------------


def hand_on(y: Tensor, key: str, value: Tensor, made_of: Tensor | None = None) -> None:
    """Lets who receives y, what this block gives, find a value there: on the tensor itself, so that a block that runs again
    under checkpointing finds it, and in the state of the forward, for where something was done to y in between. What went
    with the tensor that y was made of goes with y."""
    state()[key] = value
    if not torch.compiler.is_compiling():
        others = getattr(y if made_of is None else made_of, "_peft_carried", {})
        y._peft_carried = {**others, key: value}  # type: ignore[attr-defined]


def handed(x: Tensor, key: str | None) -> Tensor | None:
    """What the block before handed on with x."""
    on_tensor: dict[Any, Tensor] = {} if torch.compiler.is_compiling() else getattr(x, "_peft_carried", {})
    found = on_tensor.get(key)
    return state().get(key) if found is None else found
