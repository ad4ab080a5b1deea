"""What a run ran on: versions and peak memory."""

from __future__ import annotations
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal
from peft_core.errors import PeftError
from peft_core.files import is_used, left_by_killed_writers, write_files


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a result depends on."""
    import platform
    from importlib import metadata

    names = ("torch", "torchvision", "timm", "open_clip_torch", "diffusers", "lightning", "visual-peft")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> dict[str, Any]:
    """Bytes at the peak: of the GPU where one is used, else of the process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return {"bytes": torch.cuda.max_memory_allocated(), "of": torch.cuda.get_device_name()}
    status = Path("/proc/self/status")  # getrusage's figure is never below that of the process which started this one
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return {"bytes": 1024 * int(line.split()[1]), "of": "process"}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}
