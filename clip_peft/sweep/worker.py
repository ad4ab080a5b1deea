"""One run of a protocol, in a process of its own: it is trained and scored."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import clip_peft.training.job  # noqa: F401  with all that it needs, once for all workers
from clip_peft.fit import fit
from clip_peft.learner import OtherClasses
from clip_peft.sweep.protocols import Row, Trial, row_of
from clip_peft.use import report
from peft_core.card import WEIGHTS
from peft_core.files import read_json, write_files
from peft_core.jobs.cli.options import hints
from peft_core.jobs.data import Data, common, fingerprint
from peft_core.jobs.sweep.jobs import slug
from peft_core.jobs.sweep.outcome import Outcome, trained


def carry_out(trial: Trial, settings: dict[str, Any], overwrite: bool) -> Outcome:
    """Trains and scores; `results` holds the `rows`. What is there already is read.

    Args:
        settings: `fit`'s.
        overwrite: run again what was run with other settings.
    """
    with Outcome() as outcome, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        results = trained(fit, settings, overwrite)
        rows: list[Row] = []
        for column, target, classes in trial.scored:
            known = target is None and classes == trial.classes
            scores = results if known else scored(Path(settings["out"]), settings["data"], target, classes)
            rows.append(row_of(trial, column, results, scores))
        outcome.results = {"rows": rows}
    return outcome


def scored(run: Path, data: dict[str, Any], target: str | None, classes: str) -> dict[str, Any]:
    """`test`'s figures of a run, kept beside it as long as its adapter and the pictures scored are the same; {} for a method
    that cannot name these classes."""
    shared = {key: value for key, value in data.items() if key in hints(common)}
    chosen = Data(target, shared).absolute() if target else None
    of = {
        "adapter": hashlib.sha256((run / "adapter" / WEIGHTS).read_bytes()).hexdigest(),
        "pictures": fingerprint((chosen or Data.of({"data": data})).open()),
    }
    name = f"scores-{slug(target or data['name'])}-{classes}.json"
    if (run / name).is_file():
        found = read_json(run / name)
        if {key: found.get(key) for key in of} == of:
            return found
    try:
        found = report(str(run), chosen, "test", classes, True, quiet=True)
    except OtherClasses:
        return {}
    found |= of
    write_files(run, {name: json.dumps(found).encode()})
    return found
