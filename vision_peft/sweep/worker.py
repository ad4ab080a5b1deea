"""One run of a sweep, in a process that keeps the backbone and the decoded pictures for the next one."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft_data.augment import augment_of
from peft_data.base import Pictures
from torch import nn

from peft_core.files import read_json, write_files
from peft_core.jobs.data import Data
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.scores import by_class
from peft_core.jobs.runs.folder import OtherRun, plain_config
from peft_core.jobs.runs.outcome import measured
from peft_core.jobs.runs.training import CHECKPOINT
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome
from vision_peft import job
from vision_peft.backbones import load_backbone
from vision_peft.fit import fit, folder_of
from vision_peft.sweep.stamp import STAMP, stamp_of, stamp_of_recipe


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
        if not mark.is_file() or read_json(mark) != stamp:
            run.clear()  # what another version began is not gone on with
            write_files(mark.parent, {mark.name: json.dumps(stamp).encode()})
        try:
            finished = run.check(config) == "finished"
        except OtherRun:  # begun by code that had other settings, under the same stamp
            run.clear()
            finished = False
        outcome.results = (
            run.results()
            if finished
            else job.run(run, data, ready, config, load=kept_backbone, finish=finish, watch=False)
        )
    return outcome


def parcel_of(job: Job, out: Path) -> tuple[Any, ...]:
    """What `carry_out` takes of a run."""
    return job.settings, out, job.folder, stamp_of(job)


def finish(run: Finished) -> dict[str, Any]:
    """Writes results.json alone; the checkpoint goes, the adapter stays."""
    run.results["per_class"] = by_class(run.data.class_names, run.scores)
    results = measured(run.results)
    run.folder.write_results(results)
    (run.folder.path / CHECKPOINT).unlink(missing_ok=True)
    return results


class KeptData(Data):
    """A data set whose splits, once decoded, are kept until another data set is asked for."""

    def decode(self, pictures: Pictures, size: tuple[int, int], augment: str = "none", **how: Any) -> Any:
        source = json.dumps(self.plain(), sort_keys=True, default=str)
        if _KEPT.get("source") != source:
            _KEPT.clear()
            _KEPT["source"] = source
        ends = (pictures.name(0), pictures.name(len(pictures) - 1), pictures.labels.numpy().tobytes())
        key = (ends, size, augment if augment_of(augment).cuts else "none", tuple(sorted(how.items())))
        if key not in _KEPT:
            _KEPT[key] = super().decode(pictures, size, augment, **how)
        return _KEPT[key]


_KEPT: dict[Any, Any] = {}


def kept_backbone(spec: str, num_classes: int | None, drop_path: float) -> tuple[nn.Module, Backbone]:
    """`load_backbone`, from memory where the same was loaded from the same state of the random numbers before: model,
    head and the random numbers that follow are those of a run by itself."""
    model, about, after = _loaded(spec, num_classes, drop_path, torch.get_rng_state().numpy().tobytes())
    torch.set_rng_state(after)
    return copy.deepcopy(model), about


@lru_cache(maxsize=2)
def _loaded(
    spec: str, num_classes: int | None, drop_path: float, state: bytes
) -> tuple[nn.Module, Backbone, torch.Tensor]:
    model, about = load_backbone(spec, num_classes, drop_path)
    return model, about, torch.get_rng_state()
