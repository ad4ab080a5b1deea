"""`clip_peft sweep`: a protocol over data sets, methods and seeds, and its table. The same command goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from peft_data.options import arguments, takes

from clip_peft.fit import fit
from clip_peft.sweep.protocols import OPTIONS, Row, Trial, seeds_of, trials, unscored
from clip_peft.sweep.rates import Tried, at_rates, best, candidates, ordered
from clip_peft.tasks import check_classes
from peft_core.errors import PeftError
from peft_core.files import read_text
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.shared import sweeping
from peft_core.jobs.runs.process import tell
from peft_core.jobs.sweep.jobs import assignments, check_option, nested, slug
from peft_core.jobs.sweep.preset import planned
from peft_core.values import Positive, Whole

DECIDED = ("data", "method", "backbone", "out", "shots", "classes", "seed", "overwrite")
CHOSEN = ("eval_on", "hold_out", "lr", "weight_decay")
"""What the choice of rates sets of fit's options, whatever --set says: a rate is a multiple of the one that --set gives."""
PLANNED: dict[str, Any] = {
    "protocol": None, "data": [], "methods": [], "seeds": [], "shots": [], "targets": [], "set": [],
    "backbone": "reference", "rates": [], "search": False,
}  # fmt: skip
"""What a sweep consists of, and what it is where nothing is said."""
WRITTEN = ("runs", "rates.csv", "results.csv", "table.md", "report.html")
"""What an older sweep left, whose plan was not kept."""


@command("clip")
@takes(sweeping, but=("grid",))
def sweep(
    *,
    protocol: Literal[
        "base_to_new",
        "all_classes",
        "few_shot",
        "cross_dataset",
        "domain_generalisation",
        "no_validation",
        "imbalanced",
        "elevater",
    ]
    | None = None,
    shots: list[Whole] | None = None,
    targets: list[str] | None = None,
    rates: list[Positive] | None = None,
    search: bool | None = None,
    backbone: str | None = None,
    **common: Any,
) -> int:
    """Run a protocol (`list protocols`) over data sets, methods and seeds, and make one table. The same command goes on.

    Args:
        out: The folder: runs, results.csv, table.md, report.html and its figures.
        protocol: What is trained and what is scored.
        data: Data sets or folders to train on.
        seeds: By default 1 2 3; elevater: 0 1 2.
        shots: By default 16; few_shot, no_validation, imbalanced: 1 2 4 8 16; elevater: 5.
        targets: What cross_dataset and domain_generalisation score; from coop/imagenet, by default CoOp's.
        rates: Multiples of each recipe's learning rate, e.g. 1 0.1 10, to choose from on val: for each method the one of the best
            mean over the data sets, trained with the most shots and the first seed.
        search: Of elevater: each run's rate and weight decay are searched for, as its toolkit does, on a fifth of its training
            pictures: up to 90 runs of 10 epochs before each.
        set: OPTION=VALUE of fit for all runs, e.g. epochs=50 data.root=~/data; METHOD:OPTION=VALUE for one method.
        backbone: As for fit.
        overwrite: Run again what was run with other settings.
    """
    how = arguments(locals())
    plan, overwrite = planned(sweep, PLANNED, how), how["overwrite"]
    plan["seeds"] = plan["seeds"] or seeds_of(plan["protocol"])
    for name in ("protocol", "data", "methods"):
        if not plan[name]:
            raise PeftError(f"a sweep needs --{name}, or a preset that says it (--sweep NAME).")
    if plan["rates"] and "choose_on" in OPTIONS.get(plan["protocol"], {}):
        raise PeftError(f"--rates chooses on val, and {plan['protocol']} is for methods without: leave --rates out.")
    if plan["search"] and (plan["protocol"] != "elevater" or plan["rates"]):
        raise PeftError(
            "--search is ELEVATER's, and looks for rates itself: give it with --protocol elevater, without --rates."
        )
    check_classes(plan["methods"], "sweep")
    folder, methods = Path(how["out"]).expanduser().absolute(), plan["methods"]
    own = own_settings(plan)
    asked = list(trials(plan["protocol"], plan["data"], plan["targets"], methods, plan["seeds"], plan["shots"]))

    def settings(trial: Trial) -> dict[str, Any]:
        return settings_of(trial, folder, own[trial.method], plan["backbone"])

    each_once = {trial.method: trial for trial in asked}
    # a mistake is told before anything runs
    recipes = {method: fit.resolve([("", settings(trial))]) for method, trial in each_once.items()}
    from clip_peft.sweep.elevater import first_of, searched
    from clip_peft.sweep.report import write_rates, write_tables
    from clip_peft.sweep.worker import carry_out
    from peft_core.jobs.sweep.folder import SweepFolder
    from peft_core.jobs.sweep.outcome import Outcome
    from peft_core.jobs.sweep.pool import Pool, default_workers

    rows: dict[Trial, list[Row]] = {}
    failed: list[str] = []
    began, chosen = time.monotonic(), {}

    def parcel(trial: Trial, out: Path) -> tuple[Any, ...]:
        return trial, settings(trial), overwrite

    def found_by(trial: Trial, outcome: Outcome) -> list[Row]:
        return (outcome.results or {}).get("rows") or unscored(trial)

    def say(trial: Trial, outcome: Outcome, found: list[Row], counted: str) -> None:
        words = ", ".join(
            f"{r['column']} {'–' if r['accuracy'] is None else format(r['accuracy'], '.4f')}" for r in found
        )
        tell(f"[{counted}, {time.monotonic() - began:.0f} s] {trial}: {outcome.error or words}")

    def choose(pool: Pool) -> dict[str, str]:
        """Method -> its rate, chosen on val."""
        lr: dict[str, float] = {name: each["lr"] for name, each in recipes.items() if each["lr"] != "find"}
        times = ordered(plan["rates"])
        tried: dict[Trial, Tried] = {}
        found: dict[Tried, list[Row]] = {}

        def noted(trial: Trial, outcome: Outcome) -> None:
            got = found_by(trial, outcome)
            found.setdefault(tried[trial], []).extend(got)
            say(trial, outcome, got, f"rate {tried[trial].times:g} ×")
            if not got[0]["trained_parameters"] and not outcome.error:
                lr.pop(trial.method, None)

        for some in (times[:1], times[1:]):  # who trains nothing shows with the first
            now = {trial: rate for rate, trial in candidates(asked, lr, some)}
            tried |= now
            pool.run(now, noted)
        write_rates(folder, found, lr)
        return {name: f"{one.times * lr[name]:.6g}" for name, one in best(found).items() if name in lr}

    def search_on(pool: Pool) -> list[Trial]:
        """What was asked, with the rate and the decay that were found for each; as it is where nothing trains."""
        found: dict[Trial, Row] = {}

        def noted(trial: Trial, outcome: Outcome) -> None:
            found[trial], *_ = got = found_by(trial, outcome)
            say(trial, outcome, got, f"search, {len(found)}")

        def run(some: Sequence[Trial]) -> dict[Trial, Any]:
            pool.run([one for one in some if one not in found], noted)
            return {one: found[one]["accuracy"] for one in some}

        run([first_of(trial) for trial in asked])
        train = [trial for trial in asked if found[first_of(trial)]["trained_parameters"] != 0]
        better = dict(searched(train, run))
        return [better.get(trial, trial) for trial in asked]

    def done(trial: Trial, outcome: Outcome) -> None:
        rows[trial] = found_by(trial, outcome)
        failed.extend([f"{trial}: {outcome.error}"] if outcome.error else [])
        say(trial, outcome, rows[trial], f"{len(rows)}/{len(asked)}")
        if len(rows) % 8 == 0 or len(rows) == len(asked):
            inorder = [row for one in waiting for row in rows.get(one, ())]
            write_tables(folder, plan, inorder, failed, f"{len(rows)} of {len(asked)} runs")

    with SweepFolder(how["out"], plan, overwrite, "clip_peft sweep", WRITTEN):
        workers, threads = default_workers(how["workers"], how["threads"])
        with Pool(workers, threads, folder, carry_out, parcel) as pool:
            if plan["rates"]:
                chosen.update(choose(pool))
            waiting = search_on(pool) if plan["search"] else [at_rates(trial, chosen) for trial in asked]
            first = {(trial.data, trial.method): trial for trial in reversed(waiting)}
            pool.run(first.values(), done)
            for trial in waiting:  # what learns nothing is the same with any shots and any seed
                like = rows[first[trial.data, trial.method]]
                if trial not in rows and like[0]["learns"] is False:
                    done(trial, Outcome({"rows": [row | {"shots": trial.shots, "seed": trial.seed} for row in like]}))
            pool.run([trial for trial in waiting if trial not in rows], done)
    print(f"{folder / 'table.md'}\n\n{read_text(folder / 'table.md')}")
    return 1 if failed else 0


def own_settings(plan: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Method -> the options that --set gives it."""
    named = {method: method for method in plan["methods"]}
    chosen = {"data": plan["data"][0]}
    return assignments(
        "--set", plan["set"], named, lambda flag, option: check_option(flag, option, fit, DECIDED, chosen)
    )


def settings_of(trial: Trial, folder: Path, own: Iterable[tuple[str, str]], backbone: str) -> dict[str, Any]:
    """`fit`'s settings of a run."""
    place = f"{slug(trial.data)}/{slug(trial.method)}/{trial.shots}shots-{trial.classes}-seed{trial.seed}"
    again = [(key, value) for key, value in trial.options if key in CHOSEN]
    place += "".join(f"-{key}{value}" for key, value in again)
    settings = {"data": {"name": trial.data}, "method": {"name": trial.method}, "backbone": backbone}
    settings |= {
        "shots": trial.shots,
        "classes": trial.classes,
        "seed": trial.seed,
        "out": str(folder / "runs" / place),
    }
    return nested(settings, [*trial.options, *own, *again])
