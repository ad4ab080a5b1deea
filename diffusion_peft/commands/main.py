"""`diffusion_peft`: the command line."""

from __future__ import annotations

import sys
from typing import Literal

from diffusion_peft.commands.suited import unet_methods
from peft_core.jobs.cli import listing
from peft_core.jobs.cli.command import Command, command
from peft_core.jobs.cli.main import main as run_command_line


@command("diffusion")
def list_(what: Literal["methods", "recipes", "sweeps", "formats", "protocols"]) -> None:
    """List methods, recipes, sweeps, file formats or protocols.

    Args:
        what: Which list.
    """
    if what == "methods":
        listing.show_methods(unet_methods())
        return
    listing.show(what, "diffusion", {"protocols": protocols, "formats": formats})


def protocols() -> dict[str, str]:
    from diffusion_peft.protocols import list_protocols

    return list_protocols()


def formats() -> dict[str, str]:
    from diffusion_peft.commands.export import FORMATS

    return dict(FORMATS)


def commands() -> list[Command]:
    from diffusion_peft.commands.app import app
    from diffusion_peft.commands.evaluate import evaluate
    from diffusion_peft.commands.export import export
    from diffusion_peft.commands.fit import fit
    from diffusion_peft.commands.join import join_
    from diffusion_peft.commands.merge import merge_
    from diffusion_peft.commands.sample import sample
    from diffusion_peft.commands.sweep import sweep

    return [fit, sample, evaluate, sweep, export, merge_, join_, app, list_]


def main(argv: list[str] | None = None) -> int:
    """The console script `diffusion_peft`; the exit code."""
    return run_command_line("diffusion_peft", commands(), argv)


if __name__ == "__main__":
    sys.exit(main())
