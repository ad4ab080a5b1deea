"""Runs for a page: those that are finished, one that is loaded, and one that is training."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import CONFIG, RESULTS, read_results
from peft_core.jobs.runs.load import load_run, program_of
from peft_core.jobs.runs.outcome import method_words

State = Literal["nothing", "training", "done", "stopped", "failed"]


def finished(root: Path, program: str) -> list[str]:
    """Names of a program's finished runs in a folder, the newest first."""
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        results = folder / RESULTS
        if results.is_file() and (folder / CONFIG).is_file():
            try:
                if program_of(folder) == program:
                    found.append((results.stat().st_mtime, folder.name))
            except PeftError:
                continue
    return [name for _, name in sorted(found, reverse=True)]


def about(folder: Path) -> str:
    """A finished run in a line, and its first remarks as a list."""
    results = read_results(folder)
    words = [method_words(results["method"]).partition(" (")[0] if "method" in results else ""]
    if results.get("accuracy") is not None:
        interval = results.get("interval")
        sure = f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f} % with 95 % confidence)" if interval else ""
        words.append(f"accuracy {100 * results['accuracy']:.1f} %{sure} on {results['evaluated_on']}")
    if results.get("loss") is not None:
        words.append(f"loss {results['loss']:.4f} after {results['steps']:,} steps")
    notes = "".join(f"\n- {each}" for each in results.get("remarks", ())[:3])
    return " · ".join(word for word in words if word) + (f"\n{notes}" if notes else "")


class Loaded:
    """The run that was used last, kept in memory."""

    def __init__(self, program: str) -> None:
        self.program, self.key, self.run = program, (Path(), 0.0), None
        self.lock = threading.Lock()

    def get(self, folder: Path) -> Any:
        """The run, loaded anew where its folder has changed."""
        with self.lock:
            path = folder / RESULTS
            key = (folder, path.stat().st_mtime if path.is_file() else 0.0)
            if key != self.key:
                self.run, self.key = None, (Path(), 0.0)  # two bases need not lie in memory at once
                self.run, self.key = load_run(folder, (self.program,)), key
            return self.run


class Training:
    """A `fit` in a process of its own, one at a time."""

    def __init__(self, module: str, root: Path) -> None:
        self.module, self.root = module, root
        self.process: subprocess.Popen | None = None
        self.folder: Path | None = None
        self.log: Path | None = None
        self.asked_to_stop = False

    def start(self, name: str, options: Mapping[str, Any]) -> list[str]:
        """Starts `fit --out ROOT/NAME` with these options, those that hold nothing left out; its words.

        Raises:
            PeftError: one is training already, or the name is none of a folder.
        """
        if self.state() == "training":
            raise PeftError(f"{self.folder} is still training: stop it first.")
        name = name.strip()
        if not name or name in (".", "..") or re.search(r'[/\\:*?"<>|\0]', name):
            raise PeftError("give the run a name without / and the like: it becomes a folder.")
        self.folder = self.root / name
        words = ["fit", "--out", str(self.folder)]
        for option, value in options.items():
            if value is not None and str(value).strip():
                whole = isinstance(value, float) and value.is_integer()
                words += [f"--{option}", str(int(value) if whole else value).strip()]
        handle, path = tempfile.mkstemp(prefix="peft-app-", suffix=".log")
        self.log, self.asked_to_stop = Path(path), False
        with os.fdopen(handle, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
            )  # fmt: skip
        return words

    def stop(self) -> None:
        """Asks it to stop; its last checkpoint stays, and the same settings go on from there."""
        if self.process is not None and self.process.poll() is None:
            self.asked_to_stop = True
            self.process.send_signal(signal.SIGTERM)

    def state(self) -> State:
        if self.process is None:
            return "nothing"
        code = self.process.poll()
        if code is None:
            return "training"
        return "done" if code == 0 else "stopped" if self.asked_to_stop else "failed"

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log is not None else ""


def command_words(program: str, words: Sequence[str]) -> str:
    """The command that does the same on a command line."""
    return shlex.join([program, *words])


_LINE = re.compile(
    r"^(?:step (\d+)/(\d+))?\s*(?:epoch (\d+)/(\d+))?  loss ([\d.]+)(?:  (\w+) accuracy ([\d.]+))?", re.M
)


def curve(said: str) -> tuple[str, list[tuple[float, float]]]:
    """What a training counts, `epoch` or `step`, and its points (place, loss), from its lines."""
    points: dict[float, float] = {}
    what = "step"
    for step, steps, epoch, epochs, loss, *_ in _LINE.findall(said):
        if epochs:
            what = "epoch"
            points[int(step) / int(steps) * int(epochs) if step else float(epoch)] = float(loss)
        elif step:
            points[float(step)] = float(loss)
    return what, sorted(points.items())
