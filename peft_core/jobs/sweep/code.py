"""A hash of the code that a run's result depends on: its modules and all that these import, of this software's packages."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("peft_core", "peft_data", "vision_peft", "clip_peft", "diffusion_peft")
BY_NAME = ("peft_core.anatomies",)
"""Packages whose files are found by listing, so that no import names them."""


def code_hash(*modules: str) -> str:
    """Of these modules and, one after another, all that they import, comments and docstrings apart."""
    digest = hashlib.blake2b(digest_size=6)
    for name, file in sorted(_imported(modules).items()):
        digest.update(f"{name} {_hash(file)}\n".encode())
    return digest.hexdigest()


def _imported(modules: Iterable[str]) -> dict[str, Path]:
    """Module -> file, of these and of what they import, anywhere in them."""
    found: dict[str, Path] = {}
    waiting = [*modules]
    for package in BY_NAME:
        folder = _file(package)
        waiting += [f"{package}.{file.stem}" for file in sorted(folder.parent.glob("*.py"))] if folder else []
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if name in found or file is None:
            continue
        found[name] = file
        waiting += [name.rpartition(".")[0], *_names(file, name)]
    return found


def _names(file: Path, module: str) -> Iterator[str]:
    """What a file may import from: `a.b` and, as it may be a module too, `a.b.c` of `from a.b import c`."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(*_version(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def _file(module: str) -> Path | None:
    """The file of one of this software's modules."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inner)
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


def _version(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file), stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=1024)
def _tree(file: str, changed: int, size: int) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _hash(file: Path) -> str:
    return _dumped(*_version(file))


@functools.lru_cache(maxsize=1024)
def _dumped(file: str, changed: int, size: int) -> str:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=8).hexdigest()
