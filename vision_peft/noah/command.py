"""`vision_peft noah`: supernet, search, retraining, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from peft_data.video.clips import Clips

from peft_core.config_files import find_config, list_configs
from peft_core.errors import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.options import Choice, is_choice
from peft_core.jobs.cli.trainer import TrainerFlags
from peft_core.jobs.data import Data
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.folder import RunFolder, plain_config, run_name
from peft_core.values import Count, Positive, Seed, Whole
from vision_peft.fit import fit
from vision_peft.noah.search import Evolution
from vision_peft.noah.space import Space

DOMAIN = "vision/noah"


class SpaceChoice(Choice):
    """`--space vtab --space.dims 1 5 10`."""

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return Space

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        return read_yaml(find_config("space", name, DOMAIN))


def supernet_options(epochs: Count = 500, lr: Positive = 5e-4) -> None:
    """Options of the supernet's training.

    Args:
        epochs: Over the train split, one random subnet a step.
        lr: Highest learning rate.
    """


def retrain_options(epochs: Count | None = None, lr: Positive | None = None) -> None:
    """Options of the trainings of chosen subnets, by default those of fit's recipe.

    Args:
        epochs: Over train + val.
        lr: Highest learning rate.
    """


def group(target: Callable) -> type[Choice]:
    """Options without a name before them, those of `target`."""
    return type("Options", (Choice,), {"named": False, "accepts": classmethod(lambda cls, name: target)})


SupernetOptions, SearchOptions, RetrainOptions = map(group, (supernet_options, Evolution, retrain_options))


class TrainingOptions(Choice):
    """`--training.batch_size 16`: options of `fit` for all trainings, the same normalisation in all stages included."""

    named, complete = False, False
    hidden = frozenset(
        "backbone recipe out seed protocol eval_on eval_every lr epochs compile cache_prefix overwrite".split()
    ) | {name for name, hint in fit.hints.items() if is_choice(hint)}

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return fit.function


def recipe_of(settings: dict[str, Any]) -> str | None:
    """The recipe that suits the data set, where there is one."""
    suits = settings["data"].open().recipe
    return suits if suits in list_configs("recipe", DOMAIN) else None


@command(DOMAIN, default_recipe=recipe_of)
def noah(
    *,
    data: Data,
    backbone: str = "reference",
    space: SpaceChoice = "vtab",  # type: ignore[assignment]
    budget: Count | None = None,
    recipe: str | None = None,
    out: str | None = None,
    seed: Seed = 0,
    stage: Literal["all", "supernet", "search", "retrain"] = "all",
    subnet: str | None = None,
    baselines: bool = False,
    supernet: SupernetOptions = None,  # type: ignore[assignment]
    search: SearchOptions = None,  # type: ignore[assignment]
    retrain: RetrainOptions = None,  # type: ignore[assignment]
    training: TrainingOptions = None,  # type: ignore[assignment]
    workers: Whole = 1,
    ray: str | None = None,
    overwrite: bool = False,
    trainer: TrainerFlags = None,  # type: ignore[assignment]
) -> dict[str, Any]:
    """Search prompts, LoRA and adapters of their own width in every block, under a parameter budget (NOAH).

    Args:
        data: A data set with a val split, or a folder of pictures; its options are --data.OPTION.
        backbone: As for fit.
        space: A space, vtab or few_shot; its settings are --space.SETTING.
        budget: Most parameters that the subnet may insert, the head apart; by default the largest subnet's.
        recipe: world or vtab (the paper's budget), or a YAML's path; by default the data set's own.
        out: The folder; by default runs/noah-DATA-BACKBONE-SEED.
        seed: Of all chance, in all stages.
        stage: One stage alone; `all` goes on where it was stopped.
        subnet: Train this subnet, a preset (noah/cifar100) or a YAML file, without supernet and search.
        baselines: Train at the same budget a random subnet, and each method alone at one width, too.
        supernet: Options of the supernet's training.
        search: Options of the search.
        retrain: Options of the chosen subnet's training.
        training: Options of fit for all trainings, e.g. --training.batch_size 16.
        workers: Processes that score subnets; 0 is one a processor.
        ray: A Ray cluster's address (auto, HOST:PORT, ray://…), or `local`, to score subnets there.
        overwrite: Replace what the stages to run left in the folder.
        trainer: Lightning's own flags, e.g. --trainer.accelerator cpu.
    """
    settings = dict(locals())
    settings["data"] = data = data.absolute()
    settings["backbone"] = absolute(backbone)
    settings["out"] = out or run_name("noah", data.open().name, backbone.rpartition("/")[2], f"seed{seed}")
    if subnet is not None and stage in ("supernet", "search"):
        raise PeftError(f"--subnet is trained as it is: it goes with --stage retrain, not with {stage}.")
    check(data, trainer.options)
    folder = RunFolder(settings["out"], "vision_peft noah")
    config = plain_config(folder, {key: value for key, value in settings.items() if key not in FREE})
    settings["out"] = str(folder.path)
    folder.check(config, overwrite)
    from vision_peft.noah.run import carry_out  # needs Lightning

    return carry_out(folder, config, settings, common(settings), Space(**space.options), Evolution(**search.options))


def check(data: Data, trainer: dict[str, Any]) -> None:
    """Raises PeftError for what no stage could deal with."""
    if not len(data.open().val):
        raise PeftError(f"{data.name} has no val split, on which subnets are scored: give a data set with one.")
    if isinstance(data.open().train, Clips):
        raise PeftError(f"{data.name} holds clips, and noah searches on pictures: use fit, whose methods take both.")
    devices = trainer.get("devices", 1)
    if (len(devices) if isinstance(devices, list) else str(devices)) not in (1, "1") or trainer.get(
        "num_nodes", 1
    ) != 1:
        raise PeftError("noah trains on one device: --workers and --ray are what spreads the search.")


FREE = ("stage", "baselines", "workers", "ray")
"""Settings that choose what is done now, and change no result."""


def common(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `fit` for all trainings."""
    name = settings["recipe"]
    recipe = {"recipe": name} if name in list_configs("recipe", "vision") else {}
    chosen = {key: settings[key] for key in ("data", "backbone", "seed")} | settings["training"].options | recipe
    return chosen | {"data": settings["data"].plain(), "trainer": dict(settings["trainer"].options)}
