"""One run of a protocol, in a process of its own: it is trained and scored."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import torch

import clip_peft.training.job  # noqa: F401  with all that it needs, once for all workers
from clip_peft.fit import fit
from clip_peft.learner import OtherClasses
from clip_peft.sweep.protocols import Row, Trial, row_of
from clip_peft.training.evaluate import batches_of_logits, test_augment
from clip_peft.use import CLIP, report
from peft_core.files import read_json, write_files
from peft_core.jobs.cli.options import MethodChoice, hints
from peft_core.jobs.data import Data, common, fingerprint
from peft_core.jobs.runs.load import load_run
from peft_core.jobs.sweep.code import code_hash
from peft_core.jobs.sweep.jobs import slug
from peft_core.jobs.sweep.outcome import Outcome, trained
from peft_core.saved.card import WEIGHTS

USE, TIMED = "use.json", 16
"""Where a run's seconds a picture are kept, and how many pictures they are taken on."""


def carry_out(trial: Trial, settings: dict[str, Any], overwrite: bool) -> Outcome:
    """Trains and scores; `results` holds the `rows`. What is there already is read.

    Args:
        settings: `fit`'s.
        overwrite: run again what was run with other settings.
    """
    with Outcome() as outcome, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = code_hash("clip_peft.training.job", MethodChoice.accepts(settings["method"]["name"]).__module__)
        results = trained(fit, settings, overwrite, code)
        if results["evaluated_on"] == "test":
            results = results | {"use_seconds": use_seconds(Path(settings["out"]))}
        rows: list[Row] = []
        for column, target, classes in trial.scored:
            known = target is None and classes == trial.classes
            scores = results if known else scored(Path(settings["out"]), settings["data"], target, classes)
            rows.append(row_of(trial, column, results, scores))
        outcome.results = {"rows": rows}
    return outcome


def use_seconds(run: Path) -> float:
    """Seconds that the run takes to name a picture, everything of it computed anew but the class texts: of this process's
    processors, or of the clock where it runs on a GPU. Kept beside the run."""
    made_from = {"adapter": _adapter(run)}
    if (found := _kept(run / USE, made_from)) is not None:
        return found["seconds"]
    loaded = load_run(str(run), CLIP)
    data, fit = Data.of(loaded.config), loaded.fit
    pictures = data.open().test
    few = pictures.subset(range(min(TIMED, len(pictures))))
    decoded = data.decode(few, fit.size, test_augment(loaded.whole.method), **fit.how)
    now = time.monotonic if torch.cuda.is_available() else time.process_time
    times = []
    for _ in range(3):  # the first one makes the class texts
        began = now()
        for _ in batches_of_logits(loaded.encoder, decoded):
            pass
        times.append((now() - began) / len(decoded))
    write_files(run, {USE: json.dumps(made_from | {"seconds": min(times)}).encode()})
    return min(times)


def scored(run: Path, data: dict[str, Any], target: str | None, classes: str) -> dict[str, Any]:
    """`test`'s figures of a run, kept beside it as long as its adapter and the data are the same; {} for a method that
    cannot name these classes."""
    other = Data(target, {key: value for key, value in data.items() if key in hints(common)}) if target else None
    chosen = (other or Data(data["name"], {key: value for key, value in data.items() if key != "name"})).absolute()
    made_from = {"adapter": _adapter(run), "data": fingerprint(chosen.open())}
    name = f"scores-{slug(target or data['name'])}-{classes}.json"
    if (found := _kept(run / name, made_from)) is not None:
        return found
    try:
        found = report(str(run), chosen if target else None, "test", classes, True, quiet=True)
    except OtherClasses:
        return {}
    found |= made_from
    write_files(run, {name: json.dumps(found).encode()})
    return found


def _kept(file: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """What a file beside a run holds, if it was made from the same."""
    found = read_json(file, "delete it") if file.is_file() else {}
    return found if all(found.get(key) == value for key, value in made_from.items()) else None


def _adapter(run: Path) -> str:
    """A hash of what the run learnt."""
    return hashlib.sha256((run / "adapter" / WEIGHTS).read_bytes()).hexdigest()
