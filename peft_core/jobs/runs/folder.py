"""The run folder: who may write it, what is finished, and how to use a finished one (`load_run`)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peft_core.errors import PeftError
from peft_core.files import is_used, left_by_killed_writers, must_encode, read_json, read_yaml, write_files
from peft_core.jobs.runs.process import is_first_process, tell
from peft_core.jobs.runs.saying import Row, block, next_steps

CONFIG, RESULTS = "config.yaml", "results.json"
RATES, RATES_PICTURE = "rates.csv", "rates.png"
SEARCH = "search"
"""The folder, within a run's, of what was tried before its settings were chosen."""
FILES = (
    RESULTS, "metrics.csv", "curves.png", "confusion.png", "predictions.csv", "report.html", "samples", "last.ckpt",
    "adapter", "evaluation", "snapshots", RATES, RATES_PICTURE, SEARCH, CONFIG,
)  # fmt: skip
FREE = ("out", "overwrite", "save_every")
"""Settings that may differ between a run and the command that goes on with it."""


class OtherRun(PeftError):
    """The folder belongs to a run with other settings."""


class Diverged(PeftError):
    """A run whose loss or weights became no numbers."""


class NoNumbers(Diverged):
    """A trained model whose outputs are no numbers: there is nothing to go on from."""


State = Literal["new", "started", "finished"]


class RunFolder:
    """A folder that one run writes: config.yaml first, results.json last.

    Args:
        path: the folder; it is made with its first file.
        program: what re-runs it, e.g. `vision_peft fit`; stands in config.yaml.
        defaults: what settings are that a config does not have, because they are newer than it.

    Attributes:
        found: what was found of the data, where the run tells of itself; None in a sweep, which has too many runs to listen to.
        next: the commands that come after the run, which the run itself sets.
    """

    def __init__(self, path: str | os.PathLike, program: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.path, self.program, self.defaults = Path(path).expanduser(), program, dict(defaults or {})
        self.fingerprint: str | None = None
        self.found: Sequence[Row] | None = None
        self.next: Sequence[str] = ()

    def check(self, config: dict[str, Any], overwrite: bool = False) -> State:
        """Whether the run that `config` describes may have the folder, and how far it has come there. Changes nothing.

        Raises:
            PeftError: the folder holds another run that has trained, or files of something else.
        """
        there = next((place for place in (self.path, *self.path.absolute().parents) if place.exists()), self.path)
        if there.exists() and not there.is_dir():
            raise PeftError(f"{there} is a file: give --out another folder.")
        if not (self.path / CONFIG).is_file():
            if is_used(self.path, own={SEARCH}):
                raise PeftError(f"{self.path} holds files that are no run's: give --out another folder.")
            return "new"
        if overwrite and is_first_process():
            return "new"
        difference = _differences(read_run_config(self.path), self._full(config), plain(self.defaults))
        if difference and self.state() != "new":
            raise OtherRun(
                f"{self.path} holds another run ({difference}): give another --out, or --overwrite to replace it."
            )
        return self.state()

    def check_data(self) -> None:
        """Whether a finished run was made from the data whose `fingerprint` this is.

        Raises:
            PeftError: their files have changed since.
        """
        made_from = self.results().get("data_fingerprint")
        if self.fingerprint and made_from and made_from != self.fingerprint:
            raise OtherRun(
                f"{self.path} is finished, but its data have changed since then: give another --out, or --overwrite to train "
                "again."
            )

    def begin(self, config: dict[str, Any], overwrite: bool = False, about: Sequence[Row] = ()) -> None:
        """Writes config.yaml; `overwrite` removes another run's files first. The first process alone does so, and says what
        the run is `about`."""
        if not is_first_process():
            return
        goes_on = not overwrite and self.state() == "started"
        if overwrite:
            self.clear()
        if self.path.is_dir():
            for path in left_by_killed_writers(self.path):
                path.unlink()
        import yaml

        text = f"# Run this again with: {self.program} --config {shlex.quote(str(self.path / CONFIG))}\n"
        text += yaml.safe_dump(self._full(config), sort_keys=False, allow_unicode=True)
        self.write({CONFIG: text.encode()})
        if self.found is not None and (self.found or about):
            going = [("goes on", "from its last checkpoint")] if goes_on else []
            tell(block([*self.found, *about, ("writes", str(self.path)), *going]))

    def _full(self, config: dict[str, Any]) -> dict[str, Any]:
        return plain({"command": self.program} | config | {"overwrite": False})

    def state(self) -> State:
        if (self.path / RESULTS).is_file():
            return "finished"
        return "started" if (self.path / "last.ckpt").is_file() else "new"

    def clear(self) -> None:
        """Removes a run's files and nothing else; the results first and the config last, so that it is safe to be interrupted."""
        if not (self.path / CONFIG).is_file():
            return
        for name in FILES:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write(self, files: dict[str, bytes]) -> None:
        """Writes files so that each is whole or as it was before."""
        write_files(self.path, files)

    def write_results(self, results: dict[str, Any]) -> None:
        if self.fingerprint:
            results["data_fingerprint"] = self.fingerprint
        self.write({RESULTS: (json.dumps(results, indent=2, ensure_ascii=False, default=_plain) + "\n").encode()})

    def results(self) -> dict[str, Any]:
        return read_results(self.path)


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder.

    Raises:
        PeftError: it is missing or damaged.
    """
    remedy = f"delete it and give the run's `fit --config {shlex.quote(str(folder))}` again"
    results = read_json(folder / RESULTS, remedy)
    if not isinstance(results, dict):
        raise PeftError(f"{folder / RESULTS} is damaged, it holds no figures: {remedy}.")
    return results


def read_run_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of a run folder.

    Raises:
        PeftError: there is no such folder, or it is no run's.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise PeftError(f"there is no run folder {folder}: train one with `fit --out {shlex.quote(str(folder))}`.")
    if not (folder / CONFIG).is_file():
        raise PeftError(f"{folder} is no run folder: it has no {CONFIG}.")
    config = read_yaml(folder / CONFIG, "train the run again in another folder")
    if not isinstance(config.get("command"), str):
        raise PeftError(f"{folder / CONFIG} is damaged: it has no line `command:`.")
    return config


def run_name(*parts: str) -> str:
    """runs/A-B-C, the folder of a run that was given none, from what tells it from others; of a path its last folder."""
    words = (Path(part).expanduser().resolve().name if part.startswith((".", "~", "/")) else part for part in parts)
    return "runs/" + "-".join(word.strip("./~<>").replace("/", "_").replace("\0", "") or "run" for word in words)[:120]


def run_once(
    folder: RunFolder,
    settings: dict[str, Any],
    work: Callable[[dict[str, Any]], dict[str, Any]],
    headline: Callable[[dict[str, Any]], str],
    notes: Iterable[str] = (),
    found: Sequence[Row] = (),
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """The results of a run: those in the folder if it is finished, else what `work` makes of its plain config.

    Args:
        settings: what was asked for; its `out` becomes the folder.
        work: config -> results; {} in a process that does not write.
        headline: results -> what is printed of them.
        notes: said before the work begins.
        found: what was found of the data, said when training begins.
        fingerprint: of the data; the results hold it.

    Raises:
        PeftError: the folder is another run's, or was made from other data.
    """
    config, folder.fingerprint, folder.found = plain_config(folder, settings), fingerprint, found
    must_encode([json.dumps(plain(config), ensure_ascii=False)], "the run's config")
    if folder.check(config, settings["overwrite"]) == "finished":
        folder.check_data()
        print(f"{folder.path} is finished already: {headline(folder.results())}")
        return folder.results()
    for note in notes:
        tell(f"note: {note}")
    try:
        results = work(config)
    except NoNumbers:
        # so that the same command with a mended setting may have the folder
        (folder.path / "last.ckpt").unlink(missing_ok=True)
        raise
    except KeyboardInterrupt as stop:
        goes_on = "the same command goes on from the last checkpoint"
        stop.args = (
            *(stop.args or (130,)),
            goes_on if folder.state() == "started" else "no checkpoint was written yet",
        )
        raise
    if results:
        print(f"{folder.path}: {headline(results)}; see {folder.path / 'report.html'}")
        for remark in results.get("remarks", ()):
            tell(f"note: {remark}")
        if folder.next:
            tell(next_steps(folder.next))
    return results


def rate_of(folder: RunFolder, settings: Mapping[str, Any]) -> Any:
    """The learning rate asked for; of `find` the one that was found, where the run has begun."""
    rate, begun = settings["lr"], folder.state() != "new" and (folder.path / RATES).is_file()
    return read_run_config(folder.path)["lr"] if rate == "find" and begun and not settings["overwrite"] else rate


def plain_config(folder: RunFolder, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as YAML has them, with the folder as `out`."""
    settings["out"] = str(folder.path)
    return {key: value.plain() if hasattr(value, "plain") else value for key, value in settings.items()}


def _differences(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any]) -> str:
    old, new = _flat(old), _flat(new)
    old = {key: defaults[key] for key in new if key in defaults} | old
    keys = [key for key in (old | new) if key not in FREE and old.get(key) != new.get(key)]
    shown = [f"{key} is {old.get(key)} there, {new.get(key)} here" for key in keys[:3]]
    return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """The settings as JSON has them."""
    return json.loads(json.dumps(config, default=_plain))


def _plain(value: Any) -> Any:
    return (
        value.plain()
        if hasattr(value, "plain")
        else list(value)
        if isinstance(value, (tuple, range, set))
        else str(value)
    )
