"""`clip_peft`: the command line."""

from __future__ import annotations

import sys
from typing import Literal

from peft_core.cli import main as run_command_line
from peft_core.command import Command, command
from peft_core.config_files import list_configs


@command("clip")
def list_(what: Literal["methods", "data", "backbones", "recipes", "protocols"]) -> None:
    """List methods, data sets, backbones, recipes or protocols.

    Args:
        what: Which list.
    """
    if what == "methods":
        from peft_core.method import find_method, list_methods, read_preset

        own = {name: about for name, about in list_methods(None).items() if _suits(find_method(name).__module__)}
        rows = dict(sorted(own.items()))
        for name in list_configs("method", "clip"):
            settings = dict(read_preset(name) or {})
            method = settings.pop("method")
            rows[name] = f"{method}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
    elif what == "data":
        from peft_data import list_data

        rows = list_data()
    elif what == "backbones":
        from clip_peft.models import list_backbones

        rows = list_backbones()
    elif what == "protocols":
        from clip_peft.protocols import PROTOCOLS

        rows = PROTOCOLS
    else:
        rows = {
            name: path.read_text().splitlines()[0].lstrip("# ") for name, path in list_configs("recipe", "clip").items()
        }
    width = min(48, max(map(len, rows)))
    for name, about in rows.items():
        print(f"{name:<{width}}  {about}")


def _suits(module: str) -> bool:
    return module.partition(".")[0] in ("peft_core", "clip_peft")


def commands() -> list[Command]:
    from clip_peft.export import export, merge_
    from clip_peft.fit import fit
    from clip_peft.sweep import sweep
    from clip_peft.use import predict, test

    return [fit, test, predict, merge_, export, sweep, list_]


def main(argv: list[str] | None = None) -> int:
    """The console script `clip_peft`; the exit code."""
    from peft_data import DataError

    return run_command_line("clip_peft", commands(), argv, errors=(DataError,))


if __name__ == "__main__":
    sys.exit(main())
