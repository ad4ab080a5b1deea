"""A sweep's YAML, with what was given besides over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_core.config_files import find_config
from peft_core.files import read_yaml
from peft_core.jobs.cli.command import Command
from peft_core.jobs.cli.options import Choice


def planned(command: Command, defaults: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's plan: `defaults`, the settings of the YAML that `arguments["sweep"]` names (in `configs/DOMAIN/sweep`, or by
    its path), and what is given in the arguments.

    Raises:
        PeftError: no such YAML, or a setting that the command does not take.
    """
    values = {key: value.options if isinstance(value, Choice) else value for key, value in arguments.items()}
    given = {key: value for key, value in values.items() if key in defaults and value not in (None, {})}
    if values.get("sweep") is None:
        return {**defaults, **given}
    path = find_config("sweep", str(values["sweep"]), command.domain)
    found = command.resolve([(str(path), read_yaml(path)), ("", {"out": "-"} | given)])
    plain = {key: value.options if isinstance(value, Choice) else value for key, value in found.items()}
    return {key: default if plain[key] is None else plain[key] for key, default in defaults.items()}
