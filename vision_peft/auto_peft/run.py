"""A search from its first run to its picture; the folder is a sweep's, so it goes on where it was stopped.

config.yaml      the plan
results.csv      every configuration in the order in which it was proposed, with what it scored
runs/            a run folder for each
front.png        accuracy on val against parameters, and the front
chosen.yaml      the configuration of the highest accuracy: `vision_peft fit --method OUT/chosen.yaml`
report.html
"""

from __future__ import annotations

import csv
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from peft_core.anatomies import anatomy_of
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.data import Data
from peft_core.jobs.reports import page as report
from peft_core.jobs.reports.plots import INK, SECOND, axes, png
from peft_core.jobs.sweep.folder import SweepFolder
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome
from peft_core.jobs.sweep.pool import Pool, default_workers
from peft_core.jobs.sweep.progress import Progress
from vision_peft.auto_peft.search import MODULES, Configuration, Scored, Space, front, load_optuna, propose
from vision_peft.backbones import load_backbone
from vision_peft.sweep import worker

PROGRAM, RESULTS = "vision_peft auto_peft", "results.csv"


def carry_out(
    plain: dict[str, Any], data: Data, out: str, workers: int, threads: int, overwrite: bool
) -> dict[str, Any]:
    """Runs what is missing of a search and writes its files; the results of the whole."""
    load_optuna()
    with torch.random.fork_rng(devices=[]):
        model, _ = load_backbone(plain["backbone"], len(data.open().class_names))
    anatomy = anatomy_of(model)
    if None not in anatomy.streams:
        raise PeftError(
            f"auto_peft needs one stream all through, which this {anatomy.family} has not: choose a plain ViT."
        )
    space = Space(anatomy.streams[None].width, len(anatomy.blocks[None]))
    with SweepFolder(out, plain, overwrite, PROGRAM) as folder:
        return Search(folder, plain, data, space, workers, threads).run()


class Search:
    """Rounds of proposals and their runs.

    Args:
        plain: the plan.
    """

    def __init__(
        self, folder: SweepFolder, plain: dict[str, Any], data: Data, space: Space, workers: int, threads: int
    ) -> None:
        self.folder, self.plain, self.data, self.space = folder, plain, data, space
        self.count, self.threads = default_workers(workers, threads)
        self.pool: Pool | None = None
        self.proposed = read(folder.path / RESULTS, space)[: plain["runs"]]
        self.scored: dict[Configuration, Scored] = {}
        self.failed: dict[Configuration, str] = {}

    def run(self) -> dict[str, Any]:
        runs, random, seed = (self.plain[key] for key in ("runs", "random", "seed"))
        self.progress, chance = Progress(runs), Random(f"auto_peft {seed}")
        first = list[Configuration]()
        while len(first) < random:
            first += [new for new in [self.space.draw(chance)] if new not in first]
        if self.proposed[:random] != first[: len(self.proposed)]:
            self.proposed = []  # of another plan
        self.proposed += first[len(self.proposed) :]
        try:
            self.finish(self.proposed)
            while len(self.proposed) < runs:
                known = [self.scored[each] for each in self.proposed if each in self.scored]
                count = min(self.plain["batch"], runs - len(self.proposed))
                new = propose(self.space, known, set(self.proposed), count, seed + len(self.proposed))
                self.proposed += new
                self.write_table()  # before their runs: they are the same after a kill
                self.finish(new)
        finally:
            if self.pool is not None:
                self.pool.close()
            self.progress.end()
            self.write_table()
        return self.write()

    def finish(self, configurations: list[Configuration]) -> None:
        jobs = {self.job(each): each for each in configurations if each not in self.scored}
        for job, each in jobs.items():
            if (results := self.folder.results(job)) is not None:
                self.note(each, results)
                self.progress.found += 1
        todo = [job for job, each in jobs.items() if each not in self.scored]

        def done(job: Job, outcome: Outcome) -> None:
            self.folder.note_error(job, outcome.trace)
            if outcome.results is None:
                self.failed[jobs[job]] = outcome.error
            else:
                self.note(jobs[job], outcome.results)
            if outcome.fatal:
                raise PeftError(
                    f"the search stops at {job} ({outcome.error}): make room; the same command then goes on."
                )
            self.progress.step(job, len(self.failed))

        if self.count == 1:
            for job in todo:
                done(job, worker.carry_out(*worker.parcel_of(job, self.folder.path)))
        elif todo:
            self.pool = self.pool or Pool(
                self.count, self.threads, self.folder.path, worker.carry_out, worker.parcel_of
            )
            self.pool.run(todo, done)

    def job(self, each: Configuration) -> Job:
        plain, point = (
            self.plain,
            tuple((name, str(getattr(each, name))) for name in MODULES) + (("layers", str(each)),),
        )
        settings = plain["training"] | {key: plain[key] for key in ("data", "backbone", "seed", "trainer")}
        settings |= {"method": {"name": "auto_peft"} | each.settings(), "protocol": "honest", "eval_on": "val"}
        return Job(self.data.name, "auto_peft", plain["seed"], point, "val", settings)

    def note(self, each: Configuration, results: dict[str, Any]) -> None:
        count = results["parameters"]
        share = count["inserted"] / max(1, count["total"] - count["head"] - count["inserted"])
        self.scored[each] = Scored(each, share, results["accuracy"])

    def rows(self) -> list[dict[str, Any]]:
        best = front(list(self.scored.values()))
        found = []
        for number, each in enumerate(self.proposed):
            row: dict[str, Any] = {"number": number, "origin": "random" if number < self.plain["random"] else "search"}
            row |= {name: getattr(each, name) for name in MODULES} | {"layers": str(each)}
            if (scored := self.scored.get(each)) is not None:
                row |= {"share": f"{scored.share:.6f}", "accuracy": scored.accuracy, "front": int(scored in best)}
            found.append(row)
        return found

    def write_table(self) -> None:
        write_files(self.folder.path, {RESULTS: report.csv_bytes(self.rows())})

    def write(self) -> dict[str, Any]:
        """The picture, the chosen configuration and the report; the whole's results."""
        if not self.scored:
            raise PeftError(f"no run of this search succeeded: {next(iter(self.failed.values()), 'there was none')}.")
        every, path = list(self.scored.values()), self.folder.path
        best = front(every)
        chosen = best[-1]
        picture = picture_of(every, [self.scored[e] for e in self.proposed[self.plain["random"] :] if e in self.scored])
        settings = {"method": "auto_peft"} | chosen.configuration.settings()
        text = f"# {100 * chosen.accuracy:.1f} % on val of {self.data.name}, {100 * chosen.share:.3f} % of the parameters\n"
        preset = (text + yaml.safe_dump(settings, sort_keys=False)).encode()
        header = ("serial", "parallel", "tokens", "blocks", "parameters, %", "accuracy on val, %")
        rows = [
            (*each.configuration[:3], str(each.configuration), 100 * each.share, 100 * each.accuracy) for each in best
        ]
        sections = [("Accuracy against parameters", report.figure(picture, "all runs and the front")),
                    ("Front", report.table(rows, header))]  # fmt: skip
        lead = f"{len(every)} runs; the most accurate has {100 * chosen.accuracy:.1f} % on val"
        page = report.page(f"{self.data.name}, AutoPEFT", lead, sections)
        write_files(path, {"front.png": picture, "chosen.yaml": preset, "report.html": page})
        print(f"{lead} with {100 * chosen.share:.3f} % of the parameters: see {path / 'report.html'}")
        print(f"vision_peft fit --method {path / 'chosen.yaml'} trains it on train + val and scores it on test")
        return {"chosen": settings, "accuracy": chosen.accuracy, "share": chosen.share, "runs": len(every),
                "front": len(best), "failed": len(self.failed)}  # fmt: skip


def read(path: Path, space: Space) -> list[Configuration]:
    """What was proposed before, in order."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [
        Configuration(**{name: int(row[name]) for name in MODULES}, layers=tuple(bit == "1" for bit in row["layers"]))
        for row in rows
    ]
    return (
        found if all(len(each.layers) == space.depth and set(each[:3]) <= set(space.widths) for each in found) else []
    )


def picture_of(every: list[Scored], searched: list[Scored]) -> bytes:
    """PNG: accuracy on val against the share of parameters, random and proposed configurations, and the front."""
    figure, (axis,) = axes(1, 1, figsize=(7.4, 4.6))
    drawn = [each for each in every if each not in searched]
    for group, colour, name in ((drawn, "#9bb8d3", "random"), (searched, SECOND, "proposed")):
        heights = [100 * each.accuracy for each in group]
        axis.scatter([100 * each.share for each in group], heights, color=colour, s=16, linewidths=0, label=name)
    best = front(every)
    heights = [100 * each.accuracy for each in best]
    axis.plot([100 * each.share for each in best], heights, color=INK, lw=1, drawstyle="steps-post", label="front")
    axis.set_xscale("log")
    axis.set_xlabel("inserted parameters, % of the backbone's")
    axis.set_ylabel("accuracy on val, %")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9)
    return png(figure)
