"""`vision_peft auto_peft`: accuracy on val against parameters, by Bayesian optimisation."""

from __future__ import annotations

from typing import Any

from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.trainer import TrainerFlags
from peft_core.jobs.data import Data
from peft_core.jobs.hub.reach import absolute
from peft_core.values import Count, Seed, Whole
from vision_peft.noah import command as noah


class TrainingOptions(noah.TrainingOptions):
    """`--training.lr 1e-3`: options of `fit` for all runs."""

    hidden = noah.TrainingOptions.hidden - {"recipe", "lr", "epochs", "cache_prefix"}


@command("vision")
def auto_peft(
    *,
    data: Data,
    out: str,
    backbone: str = "reference",
    runs: Count = 200,
    random: Count = 100,
    batch: Count = 4,
    seed: Seed = 0,
    training: TrainingOptions = None,  # type: ignore[assignment]
    workers: Whole = 1,
    threads: Whole = 0,
    overwrite: bool = False,
    trainer: TrainerFlags = None,  # type: ignore[assignment]
) -> dict[str, Any]:
    """Search serial and parallel adapters, prefixes and the blocks that have them: accuracy on val against parameters (AutoPEFT).

    Args:
        data: A data set with a val split, or a folder of pictures; its options are --data.OPTION.
        out: The folder: runs/, results.csv, front.png, report.html, chosen.yaml. The same command goes on where it was stopped.
        backbone: As for fit.
        runs: Trainings in all, each on train and scored on val.
        random: Of them the first are drawn at random.
        batch: Configurations that are proposed together, before their runs.
        seed: Of the search, and of each run.
        training: Options of fit for all runs, e.g. --training.recipe vtab --training.lr 1e-3.
        workers: Processes; 1 is this one, 0 one a GPU or processor.
        threads: Of each process; by default the processors are shared out.
        overwrite: Change the plan of a search; runs that both plans have are kept.
        trainer: Lightning's own flags, e.g. --trainer.max_epochs 20.
    """
    data = data.absolute()
    noah.check(data, trainer.options)
    if random > runs:
        raise PeftError(f"of {runs} runs {random} cannot be random: give --random less, or --runs more.")
    plain = {
        "data": data.plain(), "backbone": absolute(backbone), "runs": runs, "random": random, "batch": batch, "seed": seed,
        "training": dict(training.options), "trainer": dict(trainer.options),
    }  # fmt: skip
    from vision_peft.auto_peft.run import carry_out  # needs Lightning

    return carry_out(plain, data, out, workers, threads, overwrite)
