"""Pictures of an evaluation, each under its own condition, and what the control adds to their time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from diffusion_peft.control.branch import set_condition
from diffusion_peft.evaluation.drawn import Asked, Drawer

TIMED = 3
"""Rounds of the time that a control adds to a picture, after one that does not count."""


class ConditionDrawer(Drawer):
    """Draws each (prompt, seed) under its own condition."""

    given: dict[Asked, Any]

    def conditions(self, asked: Sequence[Asked]) -> list[list[Any]]:
        return [[self.given[each] for each in asked]]

    def extra_seconds(self, asked: Sequence[Asked]) -> float:
        """What the control adds to the time of a picture: these drawn with it and without it in turns, medians."""
        conditions = self.conditions(asked)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(TIMED + 1):
            for given in times:
                set_condition(self.loaded.unet, None)
                start = time.perf_counter()
                self.loaded.draw_each(asked, self.how, conditions if given else ())
                times[given].append(time.perf_counter() - start)
        with_it, without = (statistics.median(times[given][1:]) for given in (True, False))
        return (with_it - without) / len(asked)
