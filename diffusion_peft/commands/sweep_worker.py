"""One run of a sweep, in a process of its own: it is trained, and its pictures are drawn."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import diffusion_peft.training.job  # noqa: F401  with all that it needs, once for all workers
from diffusion_peft.commands.evaluate import how_of
from diffusion_peft.commands.fit import fit
from diffusion_peft.protocols import find_protocol
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.runs.training import CHECKPOINT
from peft_core.jobs.sweep.code import code_hash
from peft_core.jobs.sweep.outcome import Outcome, trained


def carry_out(settings: dict[str, Any], out: Path, options: dict[str, Any]) -> Outcome:
    """Trains, or goes on, and draws what the protocol asks for.

    Args:
        settings: `fit`'s; a finished run of the same settings is left as it is, another one replaced with `overwrite`.
        out: the sweep's folder.
        options: `evaluate`'s.
    """
    said = io.StringIO()
    with Outcome() as outcome, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        outcome.results = trained(fit, settings, settings["overwrite"], code_of(settings))
        run = Path(settings["out"])
        (run / CHECKPOINT).unlink(missing_ok=True)
        _, protocol = find_protocol(options.get("protocol"), [run])
        protocol.draw([run], out, how_of(options))
    outcome.notes = tuple(line for line in said.getvalue().splitlines() if line.startswith("note: "))
    return outcome


def code_of(settings: dict[str, Any]) -> str:
    """The hash of the code that a run of these settings depends on."""
    return code_hash("diffusion_peft.training.job", MethodChoice.accepts(settings["method"]["name"]).__module__)
