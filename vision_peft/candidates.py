"""What `vision_peft auto` chooses from: methods × rates × recipes, with what each inserts, and how one of them is tried."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from peft_core import count_parameters
from peft_core.errors import PeftError
from peft_core.jobs.auto.halving import Candidate, affordable
from peft_core.jobs.auto.run import RATES, times
from peft_core.jobs.data import Data
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome
from vision_peft.fit import fit
from vision_peft.job import prepare
from vision_peft.sweep import worker


def candidates(data: Data, plan: dict[str, Any], budget: int | None) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Those that fit the model and the budget, `fit`'s own settings first, and rows of the methods that do not."""
    recipes: list[str] = plan["recipes"]
    common = {key: plan[key] for key in ("data", "backbone", "seed", "trainer")}
    ready = {recipe: fit.resolve([("", common | {"recipe": recipe})]) for recipe in recipes}
    epochs = (
        plan["epochs"] or ready[recipes[0]]["epochs"] or ready[recipes[0]]["trainer"].options.get("max_epochs") or 0
    )
    if epochs < 1:
        raise PeftError("the recipe says no number of epochs: give --epochs.")
    inserted, refused = affordable(
        plan["methods"], budget, lambda name: inserts(data, common | {"recipe": recipes[0], "method": name})
    )
    found = []
    for factor, recipe in itertools.product(RATES, recipes):
        lr = times(factor, ready[recipe]["lr"])
        for name, count in inserted.items():
            settings = common | {"recipe": recipe, "method": {"name": name}, "lr": lr, "protocol": "honest"}
            found.append(Candidate(name, recipe, lr, epochs, count, settings))
    return found, refused


def inserts(data: Data, settings: dict[str, Any]) -> int:
    """The parameters that a method inserts into the backbone."""
    with torch.random.fork_rng(devices=[]):
        ready = fit.resolve([("", settings)])
        model, _ = prepare(data.open(), ready, worker.kept_backbone)
    return count_parameters(model).inserted


def try_out(folder: Path, job: Job) -> Outcome:
    """Trains on train and scores on val, in this process, which keeps the backbone and the decoded pictures."""
    return worker.carry_out(*worker.parcel_of(job, folder))
