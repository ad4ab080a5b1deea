"""Changes to what modules of a frozen tower receive or give, for one forward in one thread.

The hooks are module-level functions that stay on the modules and do nothing outside `changed`; what they do within it stands
in a context variable, so that threads which share a model never see one another's prompts, and nothing of a forward stays in
the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]

_receives: ContextVar[Mapping[nn.Module, Change]] = ContextVar("what modules receive", default={})  # noqa: B039
_gives: ContextVar[Mapping[nn.Module, Change]] = ContextVar("what modules give", default={})  # noqa: B039


def receive(module: nn.Module, args: tuple) -> tuple | None:
    change = _receives.get().get(module)
    return None if change is None else (change(args[0]), *args[1:])


def give(module: nn.Module, args: tuple, output: Any) -> Any:
    change = _gives.get().get(module)
    return None if change is None else change(output)


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
    first, second = _receives.set(receives), _gives.set(gives)
    try:
        yield
    finally:
        _receives.reset(first)
        _gives.reset(second)
