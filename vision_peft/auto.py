"""`vision_peft auto`: recipe, method and learning rate chosen on val, then trained as `fit` would."""

from __future__ import annotations

from typing import Any

from peft_data.options import arguments, takes
from peft_data.video.clips import Clips

from peft_core.jobs.auto.options import check, searching
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.folder import run_name
from vision_peft.fit import fit, recipe_of

METHODS = ("lora", "lora_all", "adaptformer", "adapter_plus", "ia3", "linear")
"""Of docs/benchmark.md: fit's own; the three that are ahead over 19 tasks at three seeds; what is best where pictures are few and
alike (flowers: (IA)³ and linear)."""
OTHER = {"default": "world", "few": "world"}
"""The recipe tried beside the data's own; `default`, which crops and mirrors, where nothing stands here."""


@command("vision")
@takes(searching)
def auto(*, data: Data, recipes: list[str] | None = None, **common: Any) -> dict[str, Any]:
    """Choose recipe, method and learning rate on val, show what was tried, and train the best as fit would.

    Args:
        data: A data set with a val split, or a folder of pictures; its options are --data.OPTION.
        recipes: Names (`list recipes`) or YAMLs to choose from; by default the data set's own, and one that crops and mirrors
            (beside a folder's own, which does: one that does not).
    """
    how = arguments(locals())
    data, how["backbone"] = data.absolute(), absolute(how["backbone"])
    opened = data.open()
    methods = how["methods"] or list(METHODS)
    check(opened, methods, "vision")
    how["out"] = how["out"] or run_name(opened.name, how["backbone"].rpartition("/")[2], "auto", f"seed{how['seed']}")
    own = recipe_of({"data": data, "task": "classify"})
    usual = [own] if isinstance(opened.train, Clips) else [own, OTHER.get(own, "default")]
    recipes = how["recipes"] or usual
    plan = {"data": data.plain(), "backbone": how["backbone"], "methods": methods, "recipes": recipes,
            "epochs": how["epochs"], "seed": how["seed"], "trainer": dict(how["trainer"].options)}  # fmt: skip
    from peft_core.jobs.auto.run import carry_out
    from vision_peft.candidates import candidates, try_out  # needs Lightning

    grow = 1 + len(opened.val) / len(opened.train) if len(opened.test) else 1.0
    return carry_out(
        "vision_peft auto", how, plan, opened.name, lambda budget: candidates(data, plan, budget), try_out, fit, grow
    )
