"""Which process speaks and writes where several train together."""

from __future__ import annotations

import os
import sys


def is_first_process() -> bool:
    """Whether this process writes and speaks. As Lightning tells it: by RANK where torchrun, an MPI or Lightning itself
    gives each process its number; else by its number in the machine, the machine's number, or SLURM's and LSF's."""
    if os.environ.get("RANK"):
        return not _number("RANK")
    numbers = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return not any(map(_number, numbers))


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0


def tell(text: str) -> None:
    """A line for the user beside the results, said once."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, in words."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
