"""What `clip_peft auto` chooses from: methods, each with its own recipe, × rates, and how one of them is tried."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft_data import ClassificationData

from clip_peft.fit import fit
from clip_peft.open_vocabulary import NamesReadAlike, OpenVocabulary
from clip_peft.training.job import parameters, planned_epochs, resolved
from peft_core.jobs.auto.halving import Candidate, affordable
from peft_core.jobs.auto.run import RATES, times
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.hub.open_clip_models import load_backbone
from peft_core.jobs.hub.precision import in_few_bits
from peft_core.jobs.sweep.code import code_hash
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome, trained


def candidates(
    data: ClassificationData, plan: dict[str, Any], own: Mapping[str, Mapping[str, Any]], budget: int | None
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Those that fit the model and the budget, `fit`'s own settings first, and rows of the methods that do not.

    Args:
        data: as it is drawn for the runs.
        own: method -> settings beside its recipe.
    """
    common = {key: plan[key] for key in ("data", "backbone", "shots", "classes", "seed", "trainer")}
    stock = load_backbone(plan["backbone"])
    ready: dict[str, dict[str, Any]] = {}

    def count(name: str) -> int:
        ready[name] = fit.resolve([("", common | {**own.get(name, {}), "method": {"name": name}})])
        return inserts(stock, data, ready[name])

    inserted, refused = affordable(plan["methods"], budget, count)
    found = []
    for factor, name in itertools.product(RATES, inserted):
        each = ready[name]
        lr = times(factor, each["lr"])
        epochs = plan["epochs"] or planned_epochs(each, len(data.train), len(data.class_names))
        settings = common | {**own.get(name, {}), "method": {"name": name}, "recipe": each["recipe"], "lr": lr}
        found.append(Candidate(name, each["recipe"], lr, epochs, inserted[name], settings))
    return found, refused


def inserts(stock: tuple[Any, Any, Any], data: ClassificationData, settings: dict[str, Any]) -> int:
    """The parameters that a method inserts, a cache's keys among them."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", NamesReadAlike)
        method, options = resolved(settings["method"].build(), settings["template"], data.name)
        model = in_few_bits(copy.deepcopy(stock[0]), settings, method)
        whole = OpenVocabulary(model, method, data.class_names, stock[1], memory=settings["text_memory"], **options)
    learner: Any = whole.learner
    if hasattr(learner, "remember"):
        width = learner.clip.tower.features
        learner.remember(torch.zeros(1, len(data.train), width), data.train.labels)
    return parameters(whole)["inserted"]


def try_out(folder: Path, job: Job) -> Outcome:
    """Trains and scores on val, in this process; what is there already is read."""
    with Outcome() as outcome, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        outcome.results = trained(fit, job.settings | {"out": str(folder / job.folder)}, True, code_of(job.method))
    return outcome


@functools.cache
def code_of(method: str) -> str:
    """The hash of all that makes a run of the method."""
    return code_hash("clip_peft.training.job", MethodChoice.accepts(method).__module__)
