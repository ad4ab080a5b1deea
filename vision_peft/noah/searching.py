"""The second stage: the search as a folder that goes on after a kill, with its pictures and the chosen subnet's files."""

from __future__ import annotations

import time
from pathlib import Path

from peft_core.jobs.reports.page import csv_bytes
from peft_core.jobs.runs.load import load_run
from peft_core.jobs.runs.process import duration, tell
from vision_peft.noah.export import preset_text, write_weights
from vision_peft.noah.fitness import Scorer, scoring
from vision_peft.noah.folders import CANDIDATES, CHOSEN, SCORES, SearchFolder, candidate_rows
from vision_peft.noah.forms import Forms
from vision_peft.noah.picture import search_picture, subnet_picture
from vision_peft.noah.search import Candidate, Evolution, Score, best, evolve
from vision_peft.noah.space import Subnet
from vision_peft.noah.supernet import Supernet

EVERY = 5.0
"""Seconds between two states on disk."""


class Scores:
    """Scores by subnet: asked of `scorer` once each, and kept in the folder.

    A search that goes on runs its evolution again from the first generation, which takes no time, because all that was
    scored before is known: so it comes to where it was, with the same chance.
    """

    def __init__(self, folder: SearchFolder, forms: Forms, scorer: Scorer) -> None:
        self.folder, self.space, self.scorer = folder, forms.space, scorer
        self.known = folder.read_scores(self.space)
        self.asked, self.saved = 0, time.monotonic()

    def __call__(self, subnets: list[Subnet]) -> list[Score]:
        missing = [subnet for subnet in subnets if subnet not in self.known]
        for subnet, score in self.scorer(missing) if missing else ():
            self.known[subnet] = score
            self.asked += 1
            if time.monotonic() - self.saved > EVERY:
                self.save()
        return [self.known[subnet] for subnet in subnets]

    def save(self) -> None:
        self.folder.write_scores(self.known, self.space)
        self.saved = time.monotonic()


def carry_out(
    folder: SearchFolder, run: Path, forms: Forms, budget: int, evolution: Evolution, seed: int, pictures: int,
    workers: int, ray: str | None,
) -> None:  # fmt: skip
    """Searches, or goes on, and writes what was found; results.json last.

    Args:
        run: the supernet's run folder.
        pictures: of val.
    """
    candidates: list[Candidate] = []
    with scoring(run, forms.space, workers, ray) as scorer:
        began, scores = time.monotonic(), Scores(folder, forms, scorer)
        for found in evolve(forms, budget, evolution, seed, scores):
            candidates += found
            scores.save()
            tell(progress(candidates, evolution, pictures, time.monotonic() - began, scores.asked))
        seconds = time.monotonic() - began
    chosen, space = best(candidates)[0], forms.space
    accuracy = chosen.score.correct / pictures
    method = space.method(chosen.subnet)
    supernet = load_run(run)
    card = {key: value for key, value in supernet.card.items() if key not in KEPT_OUT}
    net = Supernet(supernet.model.cpu(), Forms(supernet.model, space))
    write_weights(folder.path / "adapter", net, chosen.subnet, **card)
    about = f"{chosen.parameters:,} parameters; {100 * accuracy:.1f} % on val with the supernet's weights"
    folder.write(
        {
            CANDIDATES: csv_bytes(candidate_rows(candidates, space)),
            CHOSEN: preset_text(method, about).encode(),
            "search.png": search_picture(candidates, chosen, pictures, budget),
            "subnet.png": subnet_picture(method.widths),
        }
    )
    folder.write_results(
        {
            "candidates": len(candidates), "chosen": method.widths, "parameters": chosen.parameters,
            "accuracy": accuracy, "pictures": pictures, "scored": scores.asked, "seconds": seconds,
        }
    )  # fmt: skip
    (folder.path / SCORES).unlink(missing_ok=True)


KEPT_OUT = ("format", "adaptations", "train_head", "backbone", "versions", "accuracy", "protocol", "evaluated_on")
"""Entries of the supernet's card that are written anew for a subnet, or do not hold for it."""


def progress(candidates: list[Candidate], evolution: Evolution, pictures: int, seconds: float, asked: int) -> str:
    top, generation = best(candidates)[0], candidates[-1].generation + 1
    left = seconds / max(1, asked) * evolution.population * (evolution.generations - generation)
    return (
        f"generation {generation}/{evolution.generations}  {len(candidates)} subnets  best "
        f"{100 * top.score.correct / pictures:.1f} % on val with {top.parameters:,} parameters  {duration(left)} left"
    )
