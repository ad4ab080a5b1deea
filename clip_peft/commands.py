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
    if what == "methods":
        rows = listing.methods("clip")
    elif what == "data":
        from peft_data import list_data

        rows = list_data()
    elif what == "backbones":
        from peft_core.jobs.hub.open_clip_models import list_backbones

        rows = list_backbones()
    elif what == "protocols":
        from clip_peft.sweep.protocols import PROTOCOLS

        rows = PROTOCOLS
    else:
        rows = listing.configs(what.removesuffix("s"), "clip")
    listing.show(rows)


def commands() -> list[Command]:
    from clip_peft.export import export, merge_
    from clip_peft.fit import fit
    from clip_peft.sweep.command import sweep
    from clip_peft.use import predict, test

    return [fit, test, predict, merge_, export, sweep, list_]


def main(argv: list[str] | None = None) -> int:
    """The console script `clip_peft`; the exit code."""
    from peft_data import DataError

    return run_command_line("clip_peft", commands(), argv, errors=(DataError,))


if __name__ == "__main__":
    sys.exit(main())
