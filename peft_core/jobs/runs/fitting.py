"""A run of `fit` on pictures with labels, from its settings to its results."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from peft_data.base import ClassificationData

from peft_core.jobs.data import fingerprint, found
from peft_core.jobs.runs.folder import RunFolder, rate_of, run_once


def fitted(
    folder: RunFolder,
    data: ClassificationData,
    settings: dict[str, Any],
    job: str,
    headline: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """What `run_once` gives; `run(folder, data, settings, config)` of the module `job` works, imported when it must.

    Raises:
        PeftError: as `run_once`.
    """
    settings["lr"] = rate_of(folder, settings)

    def work(config: dict[str, Any]) -> dict[str, Any]:
        return import_module(job).run(folder, data, settings, config)

    return run_once(folder, settings, work, headline, data.notes, found(data), fingerprint(data))
