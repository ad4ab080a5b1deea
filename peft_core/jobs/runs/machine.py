"""What a run took of its machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def peak_memory() -> dict[str, Any]:
    """Bytes at the peak: of the GPU where one is used, else of the process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return {"bytes": torch.cuda.max_memory_allocated(), "of": torch.cuda.get_device_name()}
    status = Path("/proc/self/status")  # getrusage's figure is never below that of the process which started this one
    if status.is_file():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return {"bytes": 1024 * int(line.split()[1]), "of": "process"}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}
