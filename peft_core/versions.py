"""Versions of what a result or an adapter depends on."""

from __future__ import annotations

import functools
import platform
from importlib import metadata

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "diffusers",
    "transformers",
    "lightning",
    "safetensors",
    "visual-peft",
)


def versions() -> dict[str, str]:
    """Of Python and of those libraries that are installed."""
    return dict(_installed())


@functools.cache
def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
