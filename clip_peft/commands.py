"""`clip_peft`: the command line."""

from __future__ import annotations

import sys
from typing import Literal

from peft_core.jobs.cli import listing
from peft_core.jobs.cli.command import Command, command
from peft_core.jobs.cli.main import main as run_command_line


@command("clip")
def list_(what: Literal["methods", "data", "backbones", "recipes", "protocols", "sweeps"]) -> None:
    """List methods, data sets, backbones, recipes, protocols or sweeps.

    Args:
        what: Which list.
    """
    no = ("cross", "words", "condition")
    listing.show(
        what, "clip", {"backbones": backbones, "protocols": protocols}, families=("open_clip", "transformers"), never=no
    )


def backbones() -> dict[str, str]:
    from peft_core.jobs.hub.open_clip_models import list_backbones  # needs open_clip

    return list_backbones()


def protocols() -> dict[str, str]:
    from clip_peft.sweep.protocols import PROTOCOLS

    return PROTOCOLS


def commands() -> list[Command]:
    from clip_peft.app import app
    from clip_peft.auto import auto
    from clip_peft.compare import compare
    from clip_peft.export import export, merge_
    from clip_peft.fit import fit
    from clip_peft.pairs.retrieve import retrieve
    from clip_peft.sweep.command import sweep
    from clip_peft.use import predict, test

    return [fit, auto, test, predict, retrieve, merge_, export, compare, sweep, app, list_]


def main(argv: list[str] | None = None) -> int:
    """The console script `clip_peft`; the exit code."""
    return run_command_line("clip_peft", commands(), argv)


if __name__ == "__main__":
    sys.exit(main())
