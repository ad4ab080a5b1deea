"""A plan carried out from its first run to its table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import Any

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.reports import page as report
from peft_core.jobs.runs.folder import CONFIG
from peft_core.jobs.sweep.folder import SweepFolder
from peft_core.jobs.sweep.jobs import Job, Point
from peft_core.jobs.sweep.outcome import Outcome
from peft_core.jobs.sweep.pool import Pool, default_workers
from peft_core.jobs.sweep.progress import Progress
from vision_peft.sweep import report as sweep_report
from vision_peft.sweep.plan import Plan, make_plan
from vision_peft.sweep.stamp import differs, forget
from vision_peft.sweep.table import baselines_of, best_methods, make_rows, record
from vision_peft.sweep.worker import carry_out, parcel_of

PROGRAM = "vision_peft sweep"


def run_sweep(plain: dict[str, Any], out: str, *, workers: int, threads: int, ray: str | None, overwrite: bool) -> int:
    """Runs what is missing of a sweep and writes its table: 0, or 1 if a run failed. The arguments are `sweep`'s."""
    plan = make_plan(
        *(plain[key] for key in ("data", "methods", "seeds", "grid", "set", "backbone", "protocol", "choose_on"))
    )
    further = [seed for seed in plain["best_seeds"] if seed not in plan.seeds]
    with SweepFolder(out, plain, overwrite, PROGRAM) as folder:
        check_versions(folder, plan, further, overwrite)
        return Runner(plan, folder, workers, threads, ray).run(plain["best"], further)


def check_versions(folder: SweepFolder, plan: Plan, further: list[int], overwrite: bool) -> None:
    """Results of another version are never mixed with new ones: told, or forgotten with `overwrite`."""
    possible = [*plan.choosing()]
    for method, points in plan.points.items():
        for point in points:
            chosen = {(task, method): point for task in plan.tasks}
            possible += plan.final(chosen, [method], [*plan.seeds, *further])
    finished = [job for job in possible if folder.is_finished(job)]
    stale = {job: difference for job in finished if (difference := differs(folder.path, job))}
    if stale and not overwrite:
        job, difference = next(iter(stale.items()))
        raise PeftError(
            f"{folder.path} holds {len(stale)} runs of another version ({job}: {difference}): give another --out, or "
            f"--overwrite to run these again; the {len(finished) - len(stale)} others are kept."
        )
    for job in stale:
        forget(folder.path, job)


class Runner:
    """Carries a plan out, in whatever pool, and writes its table."""

    def __init__(self, plan: Plan, folder: SweepFolder, workers: int, threads: int, ray: str | None) -> None:
        self.plan, self.folder, self.ray = plan, folder, ray
        self.workers, self.threads = workers, threads
        self.pool: Any = None
        self.finished: dict[Job, dict[str, Any]] = {}
        self.failed: dict[Job, str] = {}
        self.notes: dict[str, None] = {}
        self.choices: list[dict[str, Any]] = []

    def run(self, best: int, further: list[int]) -> int:
        """0, or 1 if a run failed."""
        plan = self.plan
        choosing, baselines = list(plan.choosing()), baselines_of(list(plan.methods))
        finals = len(plan.tasks) * (len(plan.methods) * len(plan.seeds) + (best + len(baselines)) * len(further))
        self.progress = Progress(len(choosing) + finals)
        try:
            chosen = self.choose(self.finish(choosing))
            self.finish(plan.final(chosen, plan.methods, plan.seeds))
            if further:
                again = best_methods(make_rows(self.records(), plan.tasks), best, baselines)
                self.finish(plan.final(chosen, [*again, *baselines], further))
        finally:
            if self.pool is not None:
                self.pool.close()
            self.progress.end()
            self.write()
        return 1 if self.failed else 0

    def finish(self, jobs: Iterable[Job]) -> dict[Job, dict[str, Any]]:
        """Runs what is not finished yet; the results of all that succeeded."""
        jobs = list(dict.fromkeys(jobs))
        for job in jobs:
            if job not in self.finished and (results := self.folder.results(job)) is not None:
                self.finished[job] = results
                self.progress.found += 1
        todo = [job for job in jobs if job not in self.finished]
        if todo and self.pool is None:
            if self.ray:
                from peft_core.jobs.sweep.ray_pool import RayPool

                self.pool = RayPool(self.ray, self.workers, self.threads, self.folder.path, carry_out, parcel_of)
            else:
                count, threads = default_workers(self.workers, self.threads)
                self.pool = Pool(count, threads, self.folder.path, carry_out, parcel_of)
        if todo:
            self.pool.run(todo, self.done)
        return {job: self.finished[job] for job in jobs if job in self.finished}

    def done(self, job: Job, outcome: Outcome) -> None:
        for note in outcome.notes:
            if note not in self.notes:
                self.notes[note] = None
                self.progress.say(f"note: {note}")
        self.folder.note_error(job, outcome.trace)
        if outcome.results is not None:
            self.finished[job] = outcome.results
        else:
            self.failed[job] = outcome.error
        if outcome.fatal:
            raise PeftError(f"the sweep stops at {job} ({outcome.error}): make room; the same command then goes on.")
        self.progress.step(job, len(self.failed))

    def choose(self, results: dict[Job, dict[str, Any]]) -> dict[tuple[str, str], Point]:
        """The point that scored best for each task and method, on the task or on all those to choose on; the first of equals."""
        together = self.plan.choose_on
        scores: dict[tuple[str, str], dict[Point, list[Job]]] = {}
        for job in results:
            points = scores.setdefault(("" if together else job.task, job.method), {})
            points.setdefault(job.point, []).append(job)

        def score(jobs: list[Job]) -> float:
            """The mean; where a run failed, nothing."""
            whole = len(jobs) == max(1, len(together))
            return sum(results[job]["accuracy"] or 0.0 for job in jobs) / len(jobs) if whole else -1.0

        best = {key: max(points.values(), key=score) for key, points in scores.items()}
        self.choices = [record(job, results[job], job.folder) for jobs in best.values() for job in jobs]
        chosen = {key: jobs[0].point for key, jobs in best.items() if score(jobs) >= 0}
        return {
            (t, method): p for (task, method), p in chosen.items() for t in (self.plan.tasks if together else [task])
        }

    def records(self) -> list[dict[str, Any]]:
        """Rows of results.csv, in the plan's order."""
        of_table = [job for job in self.finished if job.split == "test" and job not in self.beaten()]
        order = {name: number for number, name in enumerate((*self.plan.tasks, *self.plan.methods))}
        of_table.sort(key=lambda job: (order[job.task], order[job.method], job.seed))
        return [record(job, self.finished[job], job.folder) for job in of_table]

    def beaten(self) -> dict[Job, None]:
        """Runs on test that only served to choose (legacy)."""
        chosen = {choice["folder"] for choice in self.choices}
        searched = [job for job in self.plan.choosing() if job.folder not in chosen]
        return dict.fromkeys(searched)

    def write(self) -> None:
        """results.csv, grid.csv, table.md and report.html of what is finished, and the table on the screen."""
        records, path, plan = self.records(), self.folder.path, self.plan
        rerun = f"{PROGRAM} --config {shlex.quote(str(path))}"
        if records:
            rows = make_rows(records, plan.tasks)
            rows.sort(key=lambda row: list(plan.methods).index(row.method))
            table = sweep_report.table_md(rows, plan, rerun)
            config = (path / CONFIG).read_text(encoding="utf-8")
            failed = [(str(job), why) for job, why in self.failed.items()]
            page = sweep_report.page(rows, records, self.choices, failed, plan, rerun, config)
            files = {"results.csv": report.csv_bytes(records), "table.md": table.encode(), "report.html": page}
            if grid := [record(job, self.finished[job], job.folder) for job in plan.choosing() if job in self.finished]:
                files["grid.csv"] = report.csv_bytes(grid)
            write_files(path, files)
            print(sweep_report.markdown(sweep_report.summary(rows, plan.tasks)))
            print(f"\n{sweep_report.describe_protocol(plan)}\nwritten: {path / 'report.html'}, table.md, results.csv")
        if self.failed:
            print(f"vision_peft: {len(self.failed)} runs failed; the same command tries them again:", file=sys.stderr)
            reasons: dict[str, list[Job]] = {}
            for job, why in self.failed.items():
                reasons.setdefault(why, []).append(job)
            for why, jobs in reasons.items():
                more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
                print(f"  {jobs[0]}{more}: {why}", file=sys.stderr)
