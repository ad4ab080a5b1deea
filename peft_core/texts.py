"""What the text of a Python file says of its classes, read without importing it."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple


def file_of(module: str) -> Path | None:
    """A module's file, found without importing it or the packages above it."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    for part in inner:
        here = file.parent / part
        file = here / "__init__.py" if here.is_dir() else here.with_suffix(".py")
    return file if file.is_file() else None


class ClassText(NamedTuple):
    """What a file's text says of a class.

    Args:
        made_from: names of the classes that it is made from.
        constants: name -> a literal, or `_UNKNOWN` where more than a literal stands there.
    """

    name: str
    made_from: list[str]
    constants: dict[str, Any]
    doc: str


_UNKNOWN = object()


@functools.cache
def _read(file: Path) -> tuple[dict[str, ClassText], dict[str, str]]:
    """A file's classes, and name -> module of what it imports by name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                imports.setdefault(alias.name, node.module)
    return {node.name: _class(node) for node in tree.body if isinstance(node, ast.ClassDef)}, imports


def classes_in(file: Path) -> dict[str, ClassText]:
    return _read(file)[0]


def _class(node: ast.ClassDef) -> ClassText:
    constants: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            try:
                constants[statement.target.id] = ast.literal_eval(statement.value)
            except ValueError:
                constants[statement.target.id] = _UNKNOWN
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return ClassText(node.name, bases, constants, ast.get_docstring(node) or "")


def constants_of(cls: ClassText, file: Path) -> dict[str, Any]:
    """Those of the class and of the classes it is made from."""
    facts: dict[str, Any] = {}
    for base in reversed(cls.made_from):
        if (found := _class_called(base, file)) is not None:
            facts |= constants_of(*found)
    return {name: value for name, value in (facts | cls.constants).items() if value is not _UNKNOWN}


def _class_called(name: str, file: Path) -> tuple[ClassText, Path] | None:
    """The class that a file means by a name: its own, or one that it imports."""
    classes, imports = _read(file)
    if name in classes:
        return classes[name], file
    other = file_of(imports[name]) if name in imports else None
    return None if other is None else _class_called(name, other)
