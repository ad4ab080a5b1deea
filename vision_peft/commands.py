"""`vision_peft`: the command line."""

from __future__ import annotations

import sys
from typing import Literal

from peft_core.cli import main as run_command_line
from peft_core.command import Command, command
from peft_core.config_files import list_configs


@command("vision")
def list_(what: Literal["methods", "data", "backbones", "recipes", "sweeps"]) -> None:
    """List methods, data sets, backbones, recipes or sweeps.

    Args:
        what: Which list.
    """
    if what == "methods":
        from peft_core.method import list_methods, read_preset

        rows = list_methods()
        for name in list_configs("method", "vision"):
            settings = dict(read_preset(name) or {})
            method = settings.pop("method")
            rows[name] = f"{method}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
    elif what == "data":
        from peft_data import list_data

        rows = list_data()
    elif what == "backbones":
        from vision_peft.backbones import list_backbones

        rows = list_backbones()
    else:
        files = list_configs(what.removesuffix("s"), "vision")
        rows = {name: path.read_text().splitlines()[0].lstrip("# ") for name, path in files.items()}
    width = min(48, max(map(len, rows)))
    for name, about in rows.items():
        print(f"{name:<{width}}  {about}")


def commands() -> list[Command]:
    from vision_peft.compare import compare
    from vision_peft.fit import fit
    from vision_peft.sweep import sweep
    from vision_peft.use import export, merge_, predict, test

    return [fit, test, predict, merge_, export, compare, sweep, list_]


def main(argv: list[str] | None = None) -> int:
    """The console script `vision_peft`; the exit code."""
    from peft_data import DataError

    return run_command_line("vision_peft", commands(), argv, errors=(DataError,))


if __name__ == "__main__":
    sys.exit(main())
