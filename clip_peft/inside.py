"""Changes to what modules of a frozen tower receive or give, for one forward in one thread.

The hooks are module-level functions that stay on the modules and do nothing outside `changed`. What they do within it stands
in a context variable, so that threads which share a model never see one another's prompts, and goes along on the tensors
between the modules, so that a block which is run again for its backward (activation checkpointing) is run as it was. Nothing
of a forward stays in the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Changes:
    """Of one forward: module → what is made of its input, of its output."""

    receives: Mapping[nn.Module, Change]
    gives: Mapping[nn.Module, Change]


_NOW: ContextVar[Changes | None] = ContextVar("clip_peft.inside", default=None)


def _changes(args: tuple) -> Changes | None:
    now = _NOW.get()
    if now is not None or torch.compiler.is_compiling():
        return now
    return getattr(args[0], "_peft_inside", None) if args else None


def receive(module: nn.Module, args: tuple) -> tuple | None:
    found = _changes(args)
    change = None if found is None else found.receives.get(module)
    return None if change is None else (change(args[0]), *args[1:])


def give(module: nn.Module, args: tuple, output: Any) -> Any:
    found = _changes(args)
    if found is None:
        return None
    change = found.gives.get(module)
    output = output if change is None else change(output)
    if torch.is_grad_enabled() and isinstance(output, Tensor) and not torch.compiler.is_compiling():
        output._peft_inside = found  # type: ignore[attr-defined]
    return output


def open_to_change(modules: Iterable[nn.Module]) -> None:
    """Once for each module, before any forward that changes it: a change comes before what others do to its input, and
    behind what they do to its output."""
    for module in modules:
        if receive not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(receive, prepend=True)
            module.register_forward_hook(give)


@contextmanager
def changed(receives: Mapping[nn.Module, Change], gives: Mapping[nn.Module, Change]) -> Iterator[None]:
    """Within the block, and in this thread alone, these modules receive (give) what the functions make of it."""
    token = _NOW.set(Changes(receives, gives))
    try:
        yield
    finally:
        _NOW.reset(token)
