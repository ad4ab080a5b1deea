"""What a run says: a block before it begins, a word while it prepares, and what to do next at its end."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from peft_core.jobs.runs.process import duration, is_first_process, tell

Row = tuple[str, str]
"""A label, and what stands beside it."""
EVERY = 10.0
"""Seconds after which a run that works says how far it is, where no bar shows it."""
LABEL, WIDTH = 11, 112


def block(rows: Sequence[Row]) -> str:
    """Rows under one another, long ones wrapped; those that say nothing are left out."""
    lines: list[str] = []
    for label, words in rows:
        if words:
            indent = " " * LABEL
            lines += textwrap.wrap(words, WIDTH, initial_indent=f"{label:<{LABEL}}", subsequent_indent=indent,
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def few(names: Sequence[str], most: int = 12) -> str:
    """`cat, dog, bird and 7 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


@contextlib.contextmanager
def waiting(what: str, total: int = 0) -> Iterator[Callable[[], None]]:
    """Tells of work before or after training: on a terminal a bar, where `total` is known, elsewhere a line every ten seconds,
    `drawing prior pictures: 40 of 100, 2 min left`. What it gives is called after each piece."""
    done, began, over = 0, time.monotonic(), threading.Event()
    bar = _bar(what, total) if total and sys.stderr.isatty() and is_first_process() else None

    def step() -> None:
        nonlocal done
        done += 1
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done)

    def speak() -> None:
        while not over.wait(EVERY):
            spent = time.monotonic() - began
            if total and done:
                tell(f"{what}: {done:,} of {total:,}, {duration(spent / done * (total - done))} left")
            else:
                tell(f"{what}: {duration(spent)} so far")

    speaker = None if bar is not None else threading.Thread(target=speak, daemon=True)
    if speaker is not None:
        speaker.start()
    try:
        yield step
    finally:
        over.set()
        if bar is not None:
            bar.stop()
        if speaker is not None:
            speaker.join()


def _bar(what: str, total: int):
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar


def sure_words(results: Mapping[str, Any]) -> str:
    """` (0.307 to 0.602 with 95 %)`, what an accuracy in results may be on endless pictures; "" in earlier versions' results."""
    interval = results.get("interval")
    return f" ({interval[0]:.3f} to {interval[1]:.3f} with 95 %)" if interval else ""


def next_steps(commands: Sequence[str]) -> str:
    """The commands that come next, each on a line that runs as it stands."""
    return "\n".join(["next:", *(f"  {command}" for command in commands)])
