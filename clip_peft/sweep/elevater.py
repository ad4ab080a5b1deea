"""ELEVATER's search: for each learning rate the weight decay that is best on held-out training pictures, then the best of both.

Li et al., "ELEVATER: A Benchmark and Toolkit for Evaluating Language-Augmented Visual Models", NeurIPS 2022;
Computer-Vision-in-the-Wild/Elevater_Toolkit_IC 00d0af7, vision_benchmark/evaluation/full_model_finetune.py. Of 97 decays at
equal steps of their logarithms seven are tried, then those 8, 4, 2 and 1 places beside the best one so far; runs of 10 epochs,
and at the end one of 50 on all pictures. There a run counts by its best epoch, here by its last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from clip_peft.sweep.protocols import Trial, on_val

RATES = tuple(10.0**power for power in range(-6, 0))
DECAYS = tuple(10 ** (-6 + place / 8) for place in range(97))
SPANS = (8, 4, 2, 1)
HELD_OUT = ("hold_out", "0.2")
SHORT, LONG = (("epochs", "10"),), (("epochs", "50"),)


@dataclass
class Climb:
    """The best decay at one rate, so far."""

    place: int = 0
    score: float = 0.0
    asked: list[int] = field(default_factory=lambda: list(range(0, len(DECAYS), 16)))

    def told(self, scores: Sequence[float | None], span: int | None) -> None:
        """The scores of what was asked for; `span` is how far from the best one the next are, None where there are none."""
        for place, score in zip(self.asked, scores, strict=True):
            if score is not None and score > self.score:
                self.place, self.score = place, score
        beside = () if span is None else (max(self.place - span, 0), min(self.place + span, len(DECAYS) - 1))
        self.asked = [place for place in beside if place != self.place]


def at(trial: Trial, lr: float, place: int) -> Trial:
    """The run that a rate and a decay are judged by."""
    return on_val(trial, *SHORT, HELD_OUT, *rates(lr, place))


def rates(lr: float, place: int) -> tuple[tuple[str, str], ...]:
    """A rate, and the decay at that place, as options."""
    return ("lr", f"{lr:.6g}"), ("weight_decay", f"{DECAYS[place]:.6g}")


def first_of(trial: Trial) -> Trial:
    """The first run of its search."""
    return at(trial, RATES[0], 0)


def searched(
    trials: Sequence[Trial], run: Callable[[Sequence[Trial]], Mapping[Trial, float | None]]
) -> Iterator[tuple[Trial, Trial]]:
    """Each trial, and the same with what its search found.

    Args:
        run: gives the accuracy on val of runs, None of those that failed; all searches go on together.
    """
    climbs = {(trial, lr): Climb() for trial in trials for lr in RATES}
    for span in (*SPANS, None):
        asked = {(trial, lr): [at(trial, lr, place) for place in climb.asked] for (trial, lr), climb in climbs.items()}
        found = run(list(dict.fromkeys(one for runs in asked.values() for one in runs)))
        for key, runs in asked.items():
            climbs[key].told([found.get(one) for one in runs], span)
    for trial in trials:
        lr = max(RATES, key=lambda lr: climbs[trial, lr].score)  # the first, lowest one of equals
        yield trial, replace(trial, options=(*trial.options, *LONG, *rates(lr, climbs[trial, lr].place)))
