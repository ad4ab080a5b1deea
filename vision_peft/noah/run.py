"""`vision_peft noah` from its checks to its report."""

from __future__ import annotations

from typing import Any

import torch

from peft_core.jobs.runs.folder import RESULTS, RunFolder
from vision_peft.backbones import load_backbone
from vision_peft.noah import outcome
from vision_peft.noah.baselines import baselines
from vision_peft.noah.forms import Forms, form
from vision_peft.noah.search import Evolution
from vision_peft.noah.space import Space
from vision_peft.noah.stages import Stages


def carry_out(
    folder: RunFolder,
    config: dict[str, Any],
    settings: dict[str, Any],
    common: dict[str, Any],
    space: Space,
    evolution: Evolution,
) -> dict[str, Any]:
    """The stages that were asked for, then report.html and results.json; {} before the subnet is trained.

    Args:
        settings: the command's.
        common: `fit`'s, for all trainings.

    Raises:
        PeftError: the backbone cannot hold the space or the subnet, or no subnet has the budget; nothing is written then.
    """
    stage, subnet, overwrite = settings["stage"], settings["subnet"], settings["overwrite"]
    data = settings["data"].open()
    with torch.random.fork_rng(devices=[]):
        model, _ = load_backbone(settings["backbone"], len(data.class_names))
    # a subnet that is given need not lie in the space
    forms = Forms(model, space) if subnet is None or settings["baselines"] else None
    budget = forms.check_budget(settings["budget"]) if forms and subnet is None else None
    stages = Stages(
        folder.path, forms, budget, evolution, common, settings["supernet"].options, settings["retrain"].options,
        settings["workers"], settings["ray"], overwrite,
    )  # fmt: skip
    if subnet is not None:
        form(model, stages.chosen(subnet))  # a subnet of another depth is told before anything is written
    if overwrite:
        (folder.path / RESULTS).unlink(missing_ok=True)
    folder.begin(config)
    if stage in ("all", "supernet") and subnet is None:
        stages.train_supernet()
    if stage in ("all", "search") and subnet is None:
        stages.search()
    if stage in ("supernet", "search"):
        print(f"{folder.path}: {stage} is done")
        return {}
    method = stages.chosen(subnet)
    found = {"noah": outcome.row(stages.train("retrain", method))}
    limit = budget if budget and settings["budget"] is not None else found["noah"]["inserted"]
    if forms and settings["baselines"]:
        for name, other in baselines(model, forms, limit, settings["seed"]).items():
            found[name] = outcome.row(stages.train(f"baselines/{name}", other))
    found |= {k: v for k, v in outcome.finished_rows(folder.path / "baselines").items() if k not in found}
    about = {"data": data.name, "backbone": common["backbone"], "seed": settings["seed"], "budget": limit}
    results = outcome.write(folder, method, found, about)
    print(f"{folder.path}: see {folder.path / 'report.html'}")
    print(outcome.table(found))
    if results["verdict"]:
        print(results["verdict"])
    return results
