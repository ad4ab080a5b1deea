"""The stages' folders: supernet/ search/ retrain/ baselines/NAME/ in that of the whole."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from peft_core.jobs.reports.page import csv_bytes
from peft_core.jobs.runs.folder import RESULTS, RunFolder, State
from peft_core.saved.card import WEIGHTS
from vision_peft.noah.search import Candidate, Score
from vision_peft.noah.space import Space, Subnet

PROGRAM = "vision_peft noah"
SCORES, CANDIDATES, CHOSEN = "scores.csv", "candidates.csv", "subnet.yaml"


class SearchFolder(RunFolder):
    """search/: scores.csv is how far the search has come, candidates.csv and subnet.yaml what it found."""

    def state(self) -> State:
        if (self.path / RESULTS).is_file():
            return "finished"
        return "started" if (self.path / SCORES).is_file() else "new"

    def clear(self) -> None:
        (self.path / RESULTS).unlink(missing_ok=True)
        for name in (SCORES, CANDIDATES, CHOSEN, "search.png", "subnet.png"):
            (self.path / name).unlink(missing_ok=True)
        super().clear()

    def read_scores(self, space: Space) -> dict[Subnet, Score]:
        path = self.path / SCORES
        if not path.is_file():
            return {}
        with open(path, encoding="utf-8", newline="") as file:
            return {_read(row, space): _score(row) for row in csv.DictReader(file)}

    def write_scores(self, scores: dict[Subnet, Score], space: Space) -> None:
        rows = [score._asdict() | _row(subnet, space) for subnet, score in scores.items()]
        self.write({SCORES: csv_bytes(rows)})

    def read_candidates(self, space: Space) -> list[Candidate]:
        with open(self.path / CANDIDATES, encoding="utf-8", newline="") as file:
            return [
                Candidate(_read(row, space), _score(row), int(row["parameters"]), int(row["generation"]), row["origin"])
                for row in csv.DictReader(file)
            ]


def candidate_rows(candidates: list[Candidate], space: Space) -> list[dict[str, object]]:
    """Of candidates.csv."""
    return [
        {"generation": c.generation, "origin": c.origin, "parameters": c.parameters}
        | c.score._asdict()
        | _row(c.subnet, space)
        for c in candidates
    ]


def _row(subnet: Subnet, space: Space) -> dict[str, object]:
    return {name: " ".join(map(str, row)) for name, row in zip(space.methods, subnet, strict=True)}


def _score(row: dict[str, str]) -> Score:
    return Score(int(row["correct"]), float(row["loss"]))


def _read(row: dict[str, str], space: Space) -> Subnet:
    return space.read({name: [int(width) for width in row[name].split()] for name in space.methods})


def trace_of(run: Path) -> str:
    """Tells one trained supernet from another."""
    return hashlib.blake2b((run / "adapter" / WEIGHTS).read_bytes(), digest_size=6).hexdigest()
