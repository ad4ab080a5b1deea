"""One line that says how far a sweep is."""

from __future__ import annotations

import sys
import time

from peft_core.jobs.runs.process import duration
from peft_core.jobs.sweep.jobs import Job


class Progress:
    """One line: how many of all runs are done, and how long the others will take."""

    def __init__(self, total: int) -> None:
        self.total, self.found, self.count = total, 0, 0
        self.began = self.told = time.monotonic()
        self.live = sys.stderr.isatty()

    def step(self, job: Job, failed: int) -> None:
        self.count += 1
        now = time.monotonic()
        done = self.found + self.count
        left = (now - self.began) / self.count * (self.total - done)
        words = [f"{done}/{self.total} runs", f"{duration(left)} left", f"last: {job}"]
        words += [f"{failed} failed"] if failed else []
        if self.live:
            print(f"\r\033[K{' · '.join(words)}", end="", file=sys.stderr, flush=True)
        elif now - self.told > 60 or done * 10 // self.total > (done - 1) * 10 // self.total:
            print(" · ".join(words), file=sys.stderr, flush=True)
            self.told = now

    def say(self, text: str) -> None:
        print(f"\r\033[K{text}" if self.live else text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live and self.count:
            print(file=sys.stderr)
