"""`vision_peft`: the command line."""

from __future__ import annotations

import sys
from typing import Literal

from peft_core.errors import PeftError
from peft_core.jobs.cli import listing
from peft_core.jobs.cli.command import Command, command
from peft_core.jobs.cli.main import main as run_command_line


@command("vision")
def list_(what: Literal["methods", "data", "backbones", "recipes", "sweeps"], *, search: str | None = None) -> None:
    """List methods, data sets, backbones, recipes or sweeps.

    Args:
        what: Which list.
        search: Of backbones: those of timm whose name holds this word, with size, mean and parameters; by default ViTs.
    """
    if search is not None and what != "backbones":
        raise PeftError("--search looks for backbones: use it with `list backbones`.")
    no = ("cross", "words", "condition")
    listing.show(
        what,
        "vision",
        {"backbones": lambda: backbones(search)},
        families=("timm", "open_clip", "transformers"),
        never=no,
    )


def backbones(search: str | None = None) -> dict[str, str]:
    from vision_peft.backbones import list_backbones  # needs timm

    if search is None:
        return list_backbones()
    found = list_backbones(f"*{search.lower()}*", sizes=True)
    kept = {name: about for name, about in found.items() if search.lower() in name.lower()}
    if not kept:
        raise PeftError(
            f'timm has no pretrained model with "{search}" in its name: try a shorter word, such as dinov3.'
        )
    return kept


def commands() -> list[Command]:
    from vision_peft.app import app
    from vision_peft.auto import auto
    from vision_peft.auto_peft.command import auto_peft
    from vision_peft.bit_delta import bit_delta
    from vision_peft.compare import compare
    from vision_peft.dam_vp import dam_vp
    from vision_peft.fit import fit
    from vision_peft.glora import glora
    from vision_peft.hyper_tuning import hyper_tuning
    from vision_peft.laplace.command import laplace
    from vision_peft.noah.command import noah
    from vision_peft.sweep.command import sweep
    from vision_peft.use import export, merge_, predict, test

    return [
        fit, auto, test, predict, merge_, export, compare, sweep, noah, auto_peft, laplace, bit_delta, glora, hyper_tuning,
        dam_vp, app, list_,
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """The console script `vision_peft`; the exit code."""
    return run_command_line("vision_peft", commands(), argv)


if __name__ == "__main__":
    sys.exit(main())
