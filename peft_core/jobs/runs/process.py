"""Which process speaks and writes where several train together."""

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


def is_first_process() -> bool:
    """Whether this process writes and speaks; Lightning starts the others with these variables set."""
    return not (int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0)))


def tell(text: str) -> None:
    """A line for the user beside the results, said once."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)
