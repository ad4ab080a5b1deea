"""Around: a graft that runs a module's forward itself: on other arguments, not at all, or anew for the backward."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from peft_core.grafts.classes import Adapted
from peft_core.grafts.graft import Graft, grafts


class Around(Graft):
    """What the module's forward gives is what `around` gives. Hooks of the module, other grafts' too, act outside of it."""

    def around(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What the module gives for args and kwargs, by means of its own `forward` or without."""
        raise NotImplementedError(f"{type(self).__name__} must define around(module, forward, args, kwargs)")


class Surrounded(Adapted):
    """A module whose forward is called by the grafts around it, the one that was installed last on the outside."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run: Callable = super().forward  # type: ignore[misc]
        for graft in grafts(self, Around):
            run = partial(_around, graft, self, run)
        return run(*args, **kwargs)


def _around(graft: Around, module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    return graft.around(module, forward, args, kwargs)
