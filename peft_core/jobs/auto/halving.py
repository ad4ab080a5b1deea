"""Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): many settings trained briefly, the best third of them
three times as long, and so on; each round costs about as much. Each training is one of its own with its whole schedule.

The first candidate, `fit`'s own settings, goes along in every round, so that what is chosen has beaten it on the same pictures.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_core.errors import PeftError
from peft_core.files import read_json, write_files
from peft_core.jobs.reports import page
from peft_core.jobs.runs.outcome import TRIED
from peft_core.jobs.runs.process import duration, tell
from peft_core.jobs.sweep.folder import SweepFolder
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome

SHARES = (1 / 9, 1 / 3, 1.0)
"""Of a whole training's epochs, round by round."""
KEPT = 3
"""One in so many goes on."""


@dataclass(frozen=True)
class Candidate:
    """Settings that may be chosen: `settings` are `fit`'s, `epochs` those of a whole training."""

    method: str
    recipe: str
    lr: float
    epochs: int
    inserted: int = field(compare=False)
    settings: dict[str, Any] = field(compare=False, repr=False)

    def after(self, share: float) -> int:
        return max(1, round(share * self.epochs))


class Halving:
    """A search in its folder.

    Args:
        candidates: the most promising first: of equals the earlier is taken, and time is cut from the end.
        refused: rows of the table for those that cannot be tried, with the reason in `note`.
        task: name of the data.
        run: trains one, in the folder, and scores it on val.
        limit: seconds that all may take, the last training included.
        grow: how much longer an epoch of the last training is than one of a try.
        budget: parameters that may be inserted.
    """

    def __init__(
        self, folder: SweepFolder, candidates: Sequence[Candidate], refused: Sequence[dict[str, Any]], task: str,
        run: Callable[[Job], Outcome], limit: float | None, grow: float = 1.0, budget: int | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.candidates, self.task, self.run = folder, list(candidates), task, run
        self.limit, self.grow, self.budget = limit, grow, budget
        pairs = zip(SHARES, [*SHARES[1:], 0.0], strict=True)
        self.rounds = [
            one for one, next_ in pairs if any(each.after(one) != each.after(next_) for each in candidates) or not next_
        ]
        path = folder.path / TRIED
        known = read_json(path)["tried"] if path.is_file() else []
        self.known = {(row["method"], row["recipe"], row["lr"], row["epochs"]): row for row in known if row["seconds"]}
        self.rows: list[dict[str, Any]] = list(refused)
        self.timed: dict[Candidate, tuple[int, float, float]] = {}
        self.spent = 0.0

    def search(self) -> Candidate:
        """The candidate that was best on val in the last round that was reached."""
        for row in self.rows:
            tell(line(row))
        alive, ranked = list(self.candidates), list[Candidate]()
        for number, share in enumerate(self.rounds):
            epochs = sorted({each.after(share) for each in alive})
            span = (
                f"{epochs[0]} to {epochs[-1]} epochs"
                if len(epochs) > 1
                else f"{epochs[0]} epoch{'s' if epochs[0] > 1 else ''}"
            )
            tell(f"round {number + 1} of {len(self.rounds)}: {len(alive)} settings, {span} each, scored on val")
            found = self.round(number, share, alive)
            if not found:
                break
            ranked = sorted(found, key=lambda each: -found[each])
            alive = ranked[: math.ceil(len(ranked) / KEPT)]
            if len(ranked) == 1:
                break
            if self.candidates[0] in found and self.candidates[0] not in alive:
                alive.append(self.candidates[0])
        if not ranked:
            raise PeftError(f"none of the settings could be trained: {self.rows[-1]['note']}.")
        return ranked[0]

    def round(self, number: int, share: float, alive: Sequence[Candidate]) -> dict[Candidate, float]:
        """Candidate -> accuracy, of those that were trained."""
        found: dict[Candidate, float] = {}
        began = self.spent
        cuts = Counter[str]()
        for each in alive:
            if cut := self.cut(each, share, began, self.rounds[number + 1 :], bool(found)):
                cuts[cut] += 1
                self.note(number, each, share, note=cut)
                continue
            accuracy = self.train(number, each, share)
            if accuracy is not None:
                found[each] = accuracy
            self.check_time(each)
        for cut, count in cuts.items():
            tell(f"  {count} {cut}")
        return found

    def train(self, number: int, each: Candidate, share: float) -> float | None:
        job = self.job(each, each.after(share))
        known = self.known.get((each.method, each.recipe, each.lr, each.after(share)))
        began = time.monotonic()
        if known and known["note"]:
            outcome = Outcome(error=known["note"])
        else:
            results = self.folder.results(job) if known else None
            outcome = Outcome(results) if results else self.run(job)
        seconds = round(known["seconds"] if known else time.monotonic() - began, 2)
        self.folder.note_error(job, outcome.trace)
        if outcome.fatal:
            raise PeftError(f"the search stops at {job} ({outcome.error}): make room; the same command then goes on.")
        self.spent += seconds
        if outcome.results is None:
            self.note(number, each, share, seconds=seconds, note=outcome.error)
            return None
        self.timed[each] = (each.after(share), outcome.results["seconds"]["train"], seconds)
        inserted, accuracy = outcome.results["parameters"]["inserted"], outcome.results["accuracy"]
        over = self.budget is not None and inserted > self.budget
        note = f"over the budget of {self.budget:,}" if over else ""
        self.note(number, each, share, inserted=inserted, accuracy=accuracy, seconds=seconds, note=note)
        return None if over else accuracy

    def job(self, each: Candidate, epochs: int) -> Job:
        point = (("recipe", each.recipe), ("lr", f"{each.lr:g}"), ("epochs", str(epochs)))
        return Job(
            self.task,
            each.method,
            each.settings["seed"],
            point,
            "val",
            each.settings | {"epochs": epochs, "eval_on": "val"},
        )

    # ---- time ------------------------------------------------------------------------------------------------------

    def expected(self, each: Candidate, epochs: int, grow: float = 1.0) -> float:
        """Seconds of a training, from a shorter one of the same settings, of the same method, or from all."""
        like = (
            [self.timed[each]]
            if each in self.timed
            else [t for other, t in self.timed.items() if other.method == each.method]
        )
        like = like or list(self.timed.values())
        return statistics.mean(whole - train + train / of * epochs * grow for of, train, whole in like)

    def last(self, each: Candidate) -> float:
        """Seconds of the last training and its files, should these settings win."""
        return 1.2 * self.expected(each, each.epochs, self.grow) + 2.0

    def cut(self, each: Candidate, share: float, began: float, later: Sequence[float], begun: bool) -> str:
        """Why there is no time for it; "" where there is. What is left beside the last training is shared with those later rounds
        that could compare two settings in it."""
        if self.limit is None or not self.timed:
            return ""
        next_ = self.expected(each, each.after(share))
        if self.spent + next_ + max(self.last(each), self.last(self.candidates[0]) if not begun else 0) > self.limit:
            return "cut: no time for it and the last training"
        left = max(0.0, self.limit - self.last(each) - began)
        room = left / (1 + sum(2 * self.expected(each, each.after(one)) <= left for one in later))
        return "cut: this round's time is over" if begun and self.spent - began + next_ > room else ""

    def check_time(self, each: Candidate) -> None:
        if (
            self.limit is not None
            and len(self.timed) == 1
            and each in self.timed
            and self.spent + self.last(each) > self.limit
        ):
            needed = math.ceil(2 * (self.spent + self.last(each)))
            raise PeftError(
                f"--time {duration(self.limit)} is too short: one whole training takes about {duration(self.last(each))} here, "
                f"so give --time {needed}s or more, or fewer --epochs."
            )

    # ---- the table -------------------------------------------------------------------------------------------------

    def note(self, number: int, each: Candidate, share: float, **values: Any) -> None:
        row = (
            row_of(each.method, each.recipe, each.lr, each.inserted, round=number + 1, epochs=each.after(share))
            | values
        )
        self.rows.append(row)
        if row["seconds"]:
            tell(line(row))
        self.write("the search is not finished")

    def write(self, words: str, chosen: Candidate | None = None) -> None:
        """tried.csv and tried.json, which the run's results and report take over."""
        found = {
            "words": words,
            "chosen": chosen and chosen_words(chosen),
            "seconds": round(self.spent, 2),
            "tried": self.rows,
        }
        files = {
            TRIED: (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode(),
            "tried.csv": page.csv_bytes(self.rows),
        }
        write_files(self.folder.path, files)

    def summary(self, chosen: Candidate) -> str:
        tries = [row for row in self.rows if row["seconds"]]
        cut = [row for row in self.rows if row["note"].startswith("cut")]
        out = [row for row in self.rows if not row["seconds"] and row not in cut]
        last = max(row["round"] for row in tries)
        many = f"{len(tries)} training{'s' if len(tries) > 1 else ''} in {last} round{'s' if last > 1 else ''}"
        words = f"{many} of successive halving, scored on val; "
        words += f"the last chose {chosen.method}, recipe {chosen.recipe}, lr {chosen.lr:g}"
        words += f"; {len(cut)} were cut for time" if cut else ""
        return words + (f"; {len(out)} could not be tried" if out else "")


def row_of(
    method: str, recipe: str, lr: float | None = None, inserted: int | None = None, **values: Any
) -> dict[str, Any]:
    """A row of the table."""
    row = {"round": 0, "epochs": None, "method": method, "recipe": recipe, "lr": lr, "inserted": inserted, "accuracy": None,
           "seconds": None, "note": ""}  # fmt: skip
    return row | values


def affordable(
    methods: Sequence[str], budget: int | None, inserts: Callable[[str], int]
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The methods that fit the model and the budget, with the parameters that they insert, and rows of those that do not.

    Args:
        inserts: method -> how many parameters; PeftError says why it does not fit.
    """
    found: dict[str, int] = {}
    refused = []
    for name in methods:
        try:
            count = inserts(name)
        except PeftError as error:
            refused.append(row_of(name, "", note=str(error).rstrip(".")))
            continue
        if budget is not None and count > budget:
            refused.append(row_of(name, "", inserted=count, note=f"inserts {count:,}, over the budget of {budget:,}"))
        else:
            found[name] = count
    return found, refused


def line(row: dict[str, Any]) -> str:
    """A row in words, in columns."""
    rate = "" if row["lr"] is None else f"lr {row['lr']:<8.2g}"
    inserted = "" if row["inserted"] is None or row["note"] else f"{row['inserted']:>11,} inserted"
    scored = "" if row["accuracy"] is None else f"  val {row['accuracy']:.4f}  {row['seconds']:.0f} s"
    return f"  {row['method']:<14} {row['recipe']:<12} {rate} {inserted}{scored}{'  ' * bool(row['note'])}{row['note']}"


def chosen_words(chosen: Candidate) -> dict[str, Any]:
    return {"method": chosen.method, "recipe": chosen.recipe, "lr": chosen.lr, "epochs": chosen.epochs}
