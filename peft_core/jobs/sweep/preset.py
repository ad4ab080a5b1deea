"""A sweep's YAML, with what was given besides over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_core.config_files import find_config
from peft_core.files import read_yaml
from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.options import Choice


def planned(
    command: Command, defaults: Mapping[str, Any], name: str | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """A sweep's plan: `defaults`, the settings of the YAML `name` (of `configs/DOMAIN/sweep`, or a path), and `given`.

    Raises:
        PeftError: no such YAML, or a setting that the command does not take.
    """
    if name is None:
        return {**defaults, **{key: value for key, value in given.items() if key in defaults}}
    path = find_config("sweep", name, command.domain)
    found = command.resolve([(str(path), read_yaml(path)), ("", {"out": "-"} | dict(given))])
    plain = {key: value.options if isinstance(value, Choice) else value for key, value in found.items()}
    return {key: default if plain[key] is None else plain[key] for key, default in defaults.items()}
