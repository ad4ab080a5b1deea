"""A run folder that a command makes of a finished run: another adapter on the same data and backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from peft_core import save_adapter
from peft_core.errors import PeftError
from peft_core.files import is_used, write_files
from peft_core.jobs.runs.folder import CONFIG, RESULTS
from peft_core.jobs.runs.use import Run

OF_SAVING = ("format", "adaptations", "backbone", "versions", "train_head", "also_trained")
"""What of a card `save_adapter` writes by itself."""


def free_folder(out: str) -> Path:
    """The folder of a new run.

    Raises:
        PeftError: it holds something.
    """
    folder = Path(out).expanduser()
    if is_used(folder):
        raise PeftError(f"{folder} holds something already: give --out another place.")
    return folder


def save_as(folder: Path, run: Run, model: nn.Module) -> None:
    """The model's adapter, with what else the run's card says."""
    card = {key: value for key, value in run.card.items() if key not in OF_SAVING}
    save_adapter(model, folder / "adapter", **card)


def write_about(folder: Path, run: Run, method: Mapping[str, Any], results: Mapping[str, Any], title: str) -> None:
    """The folder's config, which is the run's but for the method, and its results."""
    config = run.config | {"method": dict(method), "out": str(folder)}
    text = f"# {title}\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_files(folder, {CONFIG: text.encode(), RESULTS: (json.dumps(results, indent=2) + "\n").encode()})
