"""A subnet as files: a method preset that `adapt` and `fit` take, and its inherited weights as an adapter folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from peft_core.adapter_file import write_adapter
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.method import Method
from peft_core.registry import make_method
from vision_peft.methods.noah import NOAH
from vision_peft.noah.forms import NAME
from vision_peft.noah.space import Subnet
from vision_peft.noah.supernet import Supernet


def preset_text(method: NOAH, about: str) -> str:
    """A method preset; `adapt(model, FILE)` and `fit --method FILE` take it."""
    import yaml

    lines = [f"# {about}", "method: noah", "widths:"]
    lines += [f"  {name}: {_flow(row)}" for name, row in method.widths.items()]
    further = {"dropout": method.dropout, "settings": method.settings}
    text = "\n".join(lines) + "\n"
    return text + "".join(yaml.safe_dump({key: value}) for key, value in further.items() if value)


def _flow(row: Any) -> str:
    return str(row) if isinstance(row, int) else "[" + ", ".join(map(str, row)) + "]"


def write_preset(path: Path, method: NOAH, about: str) -> None:
    write_files(path.parent, {path.name: preset_text(method, about).encode()})


def read_preset(name: str) -> NOAH:
    """The subnet of a preset's name (`noah/cifar100`) or file.

    Raises:
        PeftError: there is none, or it is another method's.
    """
    method = make_method(name)
    if not isinstance(method, NOAH):
        raise PeftError(f"{name} is a preset of {method.name}, no subnet: its first line should be `method: noah`.")
    return method


def write_weights(folder: str | os.PathLike, supernet: Supernet, subnet: Subnet, **card: Any) -> Path:
    """The subnet's inherited weights, with the head, as an adapter folder that `load_adapter` takes.

    Args:
        card: further entries, e.g. class_names.
    """
    methods: dict[str, Method] = {NAME: supernet.forms.space.method(subnet)}
    return write_adapter(folder, methods, supernet.state(subnet), supernet.model, **{"train_head": True} | card)
