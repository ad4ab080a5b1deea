"""`clip_peft auto`: method, with its recipe, and learning rate chosen on val, then trained as `fit` would."""

from __future__ import annotations

from typing import Any

from peft_data.options import arguments, takes

from clip_peft.fit import fit
from clip_peft.tasks import check_classes
from clip_peft.training.few_shot import Classes, chosen
from peft_core.jobs.auto.options import check, searching
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.folder import run_name
from peft_core.values import Whole

SETTINGS: dict[str, dict[str, Any]] = {
    "coop": {},
    "taskres": {},
    "linear_probe": {},
    "tip_adapter_f": {},
    "clip_adapter": {},
    "adaptformer": {"steps_per_shot": 25},
    "promptsrc": {"batch_size": 8},
}
"""Of docs/clip.md, 16 shots, classes that were trained on: fit's own; the three that are ahead on `things`, CLIP-Adapter behind
them, and two that are among the best on `objects`. Their settings are those of the sweep that made its table, which shortened
published schedules of minutes and hours."""


@command("clip")
@takes(searching, seed=1)
def auto(*, data: Data, shots: Whole = 16, classes: Classes = "all", **common: Any) -> dict[str, Any]:
    """Choose method and learning rate on val, show what was tried, and train the best as fit would.

    Args:
        data: A data set with a val split, or a folder of pictures; its options are --data.OPTION.
        shots: Training pictures a class, as for fit; val has as many, four at most. 0 takes all of both.
        classes: `base` trains and scores the first half of the labels, `new` the others.
    """
    how = arguments(locals())
    data, how["backbone"] = data.absolute(), absolute(how["backbone"])
    opened = chosen(data.open(), shots, how["seed"], classes)
    methods = how["methods"] or list(SETTINGS)
    check(opened, methods, "clip")
    check_classes(methods, "auto")
    parts = (opened.name, how["backbone"].rpartition("/")[2], "auto", f"{shots}shots", classes, f"seed{how['seed']}")
    how["out"] = how["out"] or run_name(*parts)
    plan = {key: how[key] for key in ("backbone", "shots", "classes", "epochs", "seed")}
    plan |= {"data": data.plain(), "methods": methods, "trainer": dict(how["trainer"].options)}
    from clip_peft.candidates import candidates, try_out  # needs Lightning
    from peft_core.jobs.auto.run import carry_out

    def choices(budget: int | None) -> Any:
        return candidates(opened, plan, SETTINGS, budget)

    return carry_out("clip_peft auto", how, plan, opened.name, choices, try_out, fit)
