"""Options that every `auto` takes, and what stands in them: spans of time and numbers of parameters in a user's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft_core.errors import PeftError
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.cli.trainer import TrainerFlags
from peft_core.values import Seed, Whole

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def searching(
    *,
    out: str | None = None,
    backbone: str = "reference",
    methods: list[str] | None = None,
    time: str | None = None,
    budget: str | None = None,
    epochs: Whole = 0,
    seed: Seed = 0,
    overwrite: bool = False,
    trainer: TrainerFlags = None,  # type: ignore[assignment]
) -> None:
    """Options of every `auto`.

    Args:
        out: The run folder; what was tried lies in its folder `search`. The same command goes on where it was stopped.
        backbone: As for fit.
        methods: Methods and presets to choose from (`list methods`); by default a short list.
        time: All may take so long, the last training included: 90s, 10m, 1h30m. Default: no limit.
        budget: Parameters that a method may insert, the head apart: 20000, 500k, 1M. Default: no limit.
        epochs: Of the last training, and of the last round's; 0 takes the recipe's number.
        seed: Of all runs.
        overwrite: Start anew where the folder holds another search.
        trainer: Lightning's own flags, e.g. --trainer.accelerator cpu.
    """


def check(data: Any, methods: Sequence[str], program: str) -> None:
    """Raises PeftError: no val pictures to choose on, or a method that this program does not have."""
    if not len(data.val):
        raise PeftError(f"{data.name} has no val pictures to choose on: give it a val split, or train with fit.")
    for name in methods:
        MethodChoice.check_name(name, program)


def seconds_of(text: str | None) -> float | None:
    """`10m` -> 600; a bare number counts seconds."""
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise PeftError(f'--time takes a span like 90s, 10m or 1h30m, not "{text}".')
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if seconds <= 0:
        raise PeftError("--time must be above 0: leave it out for no limit.")
    return seconds


def count_of(text: str | None) -> int | None:
    """`1M` -> 1,000,000."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower().replace(",", "").replace("_", ""))
    if not found:
        raise PeftError(f'--budget takes a number of parameters like 20000, 500k or 1M, not "{text}".')
    return round(float(found[1]) * SIZES[found[2]])
