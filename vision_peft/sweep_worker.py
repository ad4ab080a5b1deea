"""One run of a sweep, in a process that keeps the backbone and the decoded pictures for the next one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import io
import json
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from peft_data import DataError
from peft_data.base import Pictures
from peft_data.cache import DecodedPictures
from torch import nn

from peft_core.errors import PeftError
from peft_core.outcome import measured
from peft_core.runs import OtherRun, plain_config
from peft_core.training import CHECKPOINT
from vision_peft import job
from vision_peft.backbones import Backbone, load_backbone
from vision_peft.data import Data
from vision_peft.fit import fit, folder_of
from vision_peft.sweep_folder import STAMP, stamp_of_recipe, write_json


@dataclasses.dataclass
class Outcome:
    """How a run ended, as a context that no error leaves: `results`, or a sentence in `error`.

    Args:
        trace: the traceback of an error that no sentence was written for.
        fatal: no other run can do better (the disk is full).
    """

    results: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    trace: str = ""
    fatal: bool = False

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (PeftError, DataError)):
            self.error = f"{type(error).__name__}: {self.error}"
            self.trace = "".join(traceback.format_exception(error))
        causes = (error, error.__cause__)
        self.fatal = any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in causes)
        return True


def trained(fit: Callable[..., dict[str, Any]], settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The results of `fit`, read where the run is finished; another run in its folder is replaced with `overwrite`."""
    try:
        return fit(**(settings | {"overwrite": False}))
    except OtherRun:
        if not overwrite:
            raise
        return fit(**(settings | {"overwrite": True}))


def carry_out(settings: dict[str, Any], out: Path, folder: str, stamp: dict[str, str]) -> Outcome:
    """Runs `fit` with these settings in `out/folder`, or goes on with it.

    Args:
        stamp: what the results will depend on besides the recipe; it is kept beside the folder.
    """
    with Outcome() as outcome, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ready = fit.resolve([("", settings | {"out": str(out / folder)})])
        ready["data"] = KeptData(ready["data"].name, ready["data"].options)
        run, data = folder_of(ready), ready["data"].open()
        config = plain_config(run, ready)
        outcome.notes = data.notes
        stamp = stamp | stamp_of_recipe(ready["recipe"])
        mark = run.path.with_name(run.path.name + STAMP)
        if not mark.is_file() or json.loads(mark.read_text()) != stamp:
            run.clear()  # what another version began is not gone on with
            write_json(mark, stamp)
        try:
            finished = run.check(config) == "finished"
        except OtherRun:  # begun by code that had other settings, under the same stamp
            run.clear()
            finished = False
        outcome.results = (
            run.results() if finished else job.run(run, data, ready, config, load=kept_backbone, finish=finish)
        )
    return outcome


def finish(run: Any, data: Any, results: dict[str, Any], history: Any, scores: Any, pictures: Any) -> dict[str, Any]:
    """Writes results.json alone; the checkpoint goes, the adapter stays."""
    results["per_class"] = dict(zip(data.class_names, scores.per_class, strict=True)) if scores else {}
    results = measured(results)
    run.write_results(results)
    (run.path / CHECKPOINT).unlink(missing_ok=True)
    return results


class KeptData(Data):
    """A data set whose splits, once decoded, are kept until another data set is asked for."""

    def decode(self, pictures: Pictures, size: tuple[int, int], **how: Any) -> DecodedPictures:
        source = json.dumps(self.plain(), sort_keys=True, default=str)
        if _KEPT.get("source") != source:
            _KEPT.clear()
            _KEPT["source"] = source
        ends = (pictures.name(0), pictures.name(len(pictures) - 1), pictures.labels.numpy().tobytes())
        key = (ends, size, tuple(sorted(how.items())))
        if key not in _KEPT:
            _KEPT[key] = super().decode(pictures, size, **how)
        return _KEPT[key]


_KEPT: dict[Any, Any] = {}


def kept_backbone(spec: str, num_classes: int, drop_path: float) -> tuple[nn.Module, Backbone]:
    """`load_backbone`, from memory where the same was loaded from the same state of the random numbers before: model,
    head and the random numbers that follow are those of a run by itself."""
    model, about, after = _loaded(spec, num_classes, drop_path, torch.get_rng_state().numpy().tobytes())
    torch.set_rng_state(after)
    return copy.deepcopy(model), about


@lru_cache(maxsize=2)
def _loaded(spec: str, num_classes: int, drop_path: float, state: bytes) -> tuple[nn.Module, Backbone, torch.Tensor]:
    model, about = load_backbone(spec, num_classes, drop_path)
    return model, about, torch.get_rng_state()
