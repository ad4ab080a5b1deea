"""`diffusion_peft`: the command line."""

from __future__ import annotations

import sys
from typing import Literal

from peft_core import listing
from peft_core.cli import main as run_command_line
from peft_core.command import Command, command


@command("diffusion")
def list_(what: Literal["methods", "recipes", "sweeps", "formats", "protocols"]) -> None:
    """List methods, recipes, sweeps, file formats or protocols.

    Args:
        what: Which list.
    """
    if what == "methods":
        rows = unet_methods()
    elif what in ("recipes", "sweeps"):
        rows = listing.configs(what.removesuffix("s"), "diffusion")
    elif what == "protocols":
        from diffusion_peft.protocols import list_protocols

        rows = list_protocols()
    else:
        from diffusion_peft.export import FORMATS

        rows = dict(FORMATS)
    listing.show(rows)


def unet_methods() -> dict[str, str]:
    """Name -> about, of the methods that a UNet takes and of their presets: none that needs a file, prompt tokens or a
    classifier's head."""
    return listing.methods("diffusion", but=("lora_file", "vpt", "linear"))


def commands() -> list[Command]:
    from diffusion_peft.evaluate import evaluate
    from diffusion_peft.export import export
    from diffusion_peft.fit import fit
    from diffusion_peft.merge import merge_
    from diffusion_peft.personalize.join import join_
    from diffusion_peft.sample import sample
    from diffusion_peft.sweep import sweep

    return [fit, sample, evaluate, sweep, export, merge_, join_, list_]


def main(argv: list[str] | None = None) -> int:
    """The console script `diffusion_peft`; the exit code."""
    from peft_data import DataError

    return run_command_line("diffusion_peft", commands(), argv, errors=(DataError,))


if __name__ == "__main__":
    sys.exit(main())
