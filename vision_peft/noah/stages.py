"""The stages, each in a folder of its own that goes on after a kill: train the supernet, search it, train the chosen anew."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import RESULTS, plain_config
from peft_core.jobs.runs.process import tell
from vision_peft import job
from vision_peft.fit import fit, folder_of
from vision_peft.methods.noah import NOAH
from vision_peft.noah import searching
from vision_peft.noah.export import read_preset
from vision_peft.noah.folders import CHOSEN, PROGRAM, SearchFolder, trace_of
from vision_peft.noah.forms import Forms
from vision_peft.noah.search import Evolution
from vision_peft.noah.supernet import SupernetClassifier


@dataclass
class Stages:
    """What the stages know of each other.

    Args:
        out: the folder of the whole.
        forms: of the backbone and the space; None where no stage needs them.
        budget: None where nothing is searched.
        common: settings of `fit` that all trainings share: data, backbone, seed, recipe …
        supernet, retrain: {epochs, lr} of the two trainings; None is the recipe's.
        workers, ray: see `fitness.scoring`.
    """

    out: Path
    forms: Forms | None
    budget: int | None
    evolution: Evolution
    common: dict[str, Any]
    supernet: dict[str, Any]
    retrain: dict[str, Any]
    workers: int
    ray: str | None
    overwrite: bool

    def settings(self, name: str, method: NOAH, options: dict[str, Any], **more: Any) -> dict[str, Any]:
        """`fit`'s arguments for a training in the folder `name`."""
        given = dict(self.common)
        if options["epochs"] is not None:
            given["trainer"] = given.get("trainer", {}) | {"max_epochs": options["epochs"]}
        if options["lr"] is not None:
            given["lr"] = options["lr"]
        chosen = {key: value for key, value in asdict(method).items() if value}
        given |= {"method": {"name": "noah"} | chosen, "out": str(self.out / name), "overwrite": self.overwrite}
        return given | more

    def train_supernet(self) -> None:
        """supernet/: every method at full width; each step trains one random subnet on train, and val is scored at the end."""
        assert self.forms
        space = self.forms.space
        widest = space.method(space.widest(self.forms.blocks))
        more = {"eval_on": "val", "cache_prefix": "off", "compile": False}
        settings = fit.resolve([("", self.settings("supernet", widest, self.supernet, **more))])
        settings["data"] = settings["data"].absolute()
        folder = folder_of(settings)
        folder.program = PROGRAM
        config = plain_config(folder, settings) | {"space": space.plain()}
        if folder.check(config, self.overwrite) != "finished":
            epochs = settings["trainer"].options["max_epochs"]
            tell(f"supernet: {epochs} epochs, one random subnet a step")
            job.run(
                folder,
                settings["data"].open(),
                settings,
                config,
                learner=partial(SupernetClassifier, space=space),
                watch=False,
            )

    def search(self) -> None:
        """search/: candidates.csv, subnet.yaml, adapter/ with inherited weights, two pictures."""
        assert self.forms and self.budget
        run, folder = self.out / "supernet", SearchFolder(self.out / "search", PROGRAM)
        if not (run / RESULTS).is_file():
            raise PeftError(f"there is no trained supernet in {run}: run --stage supernet before --stage search.")
        config = {"space": self.forms.space.plain(), "budget": self.budget, "search": asdict(self.evolution)}
        seed = self.common["seed"]
        config |= {"seed": seed, "supernet": trace_of(run)}
        if folder.check(config, self.overwrite) == "finished":
            return
        folder.begin(config, self.overwrite)
        pictures = json.loads((run / RESULTS).read_text(encoding="utf-8"))["pictures"]["val"]
        searching.carry_out(
            folder, run, self.forms, self.budget, self.evolution, seed, pictures, self.workers, self.ray
        )

    def chosen(self, subnet: str | None) -> NOAH:
        """The subnet of a preset, else the one that the search found."""
        path = self.out / "search" / CHOSEN
        if subnet is None and not path.is_file():
            raise PeftError(f"there is no {path}: run --stage search first, or give --subnet FILE.")
        return read_preset(subnet or str(path))

    def train(self, name: str, method: NOAH) -> dict[str, Any]:
        """One training on train + val by `fit`, scored on test."""
        return fit(**self.settings(name, method, self.retrain))
