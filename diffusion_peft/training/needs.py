"""What a run's method takes besides weights, told without importing its file."""

from __future__ import annotations

from typing import Any

from peft_core.registry import facts_of, find_method, method_files, read_preset


def needs_of(method: Any) -> tuple[str, ...]:
    """`Method.needs` of a choice of `fit`, of its form in a config, or of the name of a method or preset.

    Raises:
        PeftError: there is no such method.
    """
    name = str(method.name if hasattr(method, "name") else method["name"] if isinstance(method, dict) else method)
    preset = None if name in method_files() else read_preset(name)
    name = preset["method"] if preset else name
    if name not in method_files():
        find_method(name)  # says what is wrong with it
    return tuple(facts_of(name).get("needs", ()))
