"""Grafts that act on a module's whole call: what a branch reads of several arguments, or adds to a keyword one."""

from typing import Any

from torch import nn

from peft_core.grafts.graft import Graft, grafts


class Call(Graft):
    """Sees, and may change, everything that a module is called with."""

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the module is called with in place of args and kwargs."""
        return args, kwargs


def calling(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The forward pre-hook (with keyword arguments) of modules with such grafts."""
    for graft in grafts(module, Call):
        args, kwargs = graft.call(module, args, kwargs)
    return args, kwargs
