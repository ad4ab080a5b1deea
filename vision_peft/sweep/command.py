"""`vision_peft sweep`: data sets × methods × seeds, the settings chosen on val, one table."""

from __future__ import annotations

from typing import Any, Literal

from peft_data.options import arguments, takes

from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.shared import sweeping
from peft_core.jobs.sweep.preset import planned
from peft_core.values import Seed, Whole


@command("vision")
@takes(sweeping)
def sweep(
    *,
    backbone: str | None = None,
    protocol: Literal["honest", "legacy"] | None = None,
    choose_on: list[str] | None = None,
    best: Whole | None = None,
    best_seeds: list[Seed] | None = None,
    ray: str | None = None,
    **common: Any,
) -> int:
    """Run data sets × methods × seeds, and make one table. The same command goes on where it was stopped.

    Args:
        out: The sweep's folder: runs, results.csv, table.md, report.html.
        data: Data sets or folders; `"world/*"` and `"vtab/*"` are the 19 tasks.
        methods: Methods and presets (`list methods`); `"*"` is every method.
        grid: OPTION=VALUE,VALUE to choose from, e.g. method.rank=4,8 lr=1e-3,3e-3; METHOD:OPTION=… for one method.
        set: OPTION=VALUE for all runs, e.g. trainer.max_epochs=5 data.root=~/vtab-1k; METHOD:OPTION=… for one method.
        backbone: As for fit.
        protocol: `honest` chooses from the grid on val and retrains on train + val; `legacy` chooses on test.
        choose_on: Data sets whose val pictures choose a method's point of the grid for all data sets, by the mean of their
            accuracies; by default each data set chooses its own.
        best: After the seeds, give so many of the best methods, and linear, the seeds of best_seeds too.
        best_seeds: See best.
        ray: A Ray cluster's address (auto, HOST:PORT, ray://…), or `local`.
        overwrite: Change the plan of a sweep, and run again what another version of the code made.
    """
    how = arguments(locals())
    plain = planned(sweep, PLANNED, how)
    if (plain["best"] > 0) != bool(plain["best_seeds"]):
        raise PeftError("best and best_seeds go together: so many of the best methods get those seeds too.")
    from vision_peft.sweep.run import run_sweep  # needs Lightning, which other commands must not wait for

    return run_sweep(plain, **{key: how[key] for key in ("out", "workers", "threads", "ray", "overwrite")})


PLANNED: dict[str, Any] = {
    "data": [], "methods": [], "seeds": [0], "grid": [], "set": [], "backbone": "reference", "protocol": "honest",
    "choose_on": [], "best": 0, "best_seeds": [],
}  # fmt: skip
"""What a sweep's plan consists of, and what it is where nothing is said."""
