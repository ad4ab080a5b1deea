"""What a control method says of itself, so that nobody else need know its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from peft_core.method import Method


@dataclass(frozen=True, kw_only=True)
class ControlMethod(Method):
    """A method whose branch reads a condition, which `set_condition` gives."""

    needs: ClassVar[tuple[str, ...]] = ("condition",)
    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet",)
    takes: ClassVar[Literal["picture", "features", "boxes"]] = "picture"
    """Which conditions: pictures of the same size, features of an image tower (a picture as prompt), or boxes with phrases."""
    transformers: ClassVar[tuple[str, ...]] = ()
    """Kinds of bases (`Family.kind`) that are no UNets and that it works on."""
    unets: ClassVar[bool] = True
    """Whether it works on UNets."""
    file: ClassVar[str] = ""
    """What `export --format control` writes, in words."""

    write: ClassVar[Callable[[nn.Module, Any, Any, Path, torch.dtype | None], None]]
    """Writes (UNet, adaptation, control, folder, precision or None) as other programs load it; PeftError where none can."""
