"""What holds in every test: shapes that functions declare are checked, a run's figures are drawn once, writes don't
wait for the disk, and the versions at work are printed."""

import functools
import gc
import os
import platform
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from types import SimpleNamespace
from typing import Any

import pytest

from tests import killed
from tests.shapes import watch_imports

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "diffusers",
    "peft",
    "lightning",
    "datasets",
    "numpy",
)

watch_imports()


def once(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    """Draws the first time, and gives that picture from then on."""
    drawn: list[bytes] = []

    @functools.wraps(draw)
    def kept(*arguments: Any, **options: Any) -> bytes:
        if not drawn:
            drawn.append(draw(*arguments, **options))
        return drawn[0]

    return kept


@pytest.fixture(autouse=True, scope="session")
def figures_once() -> Iterator[None]:
    """The figures of runs take longer than their trainings here; what draws them has tests of its own."""
    classified = import_module("peft_core.jobs.reports.classified")
    drawing = {name: once(getattr(classified.plots, name)) for name in ("curves", "confusion")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classified, "plots", SimpleNamespace(**drawing))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """A process that dies loses nothing which the system has taken; what would, a machine without power, no test tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


def pytest_collection_finish(session: pytest.Session) -> None:
    killed.serve({item.module.__name__ for item in session.items if isinstance(item, pytest.Function)})


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_looked_through() -> None:
    """A collection in a test looks at what its own module of tests made, not at the half million objects of the imports nor
    at what earlier tests left in caches."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    terminalreporter.write_line(f"Python {platform.python_version()}, {versions}")
