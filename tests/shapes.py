"""Shapes that functions declare are checked at every call while the tests run.

A parameter or result annotated `Annotated[Tensor, "B N D"]` has three axes; an axis of one name has one length throughout a
call, a number is that length, and `...` stands for any axes, the same ones wherever it stands.

Whatever module of ours is imported after `watch_imports`, what it declares is checked: there is no list to be forgotten on.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

PACKAGES = ("peft_core", "vision_peft", "clip_peft", "diffusion_peft", "peft_data")
WATCHED: list[str] = []
"""Functions and methods whose shapes are checked, by their dotted names."""


def shapes_of(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter (or `return`) -> what its annotation says of its axes."""
    found = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        if "Annotated[" not in str(hint):
            continue
        hint = eval(hint, inspect.unwrap(function).__globals__) if isinstance(hint, str) else hint
        for part in (hint, *getattr(hint, "__args__", ())):
            words = [word for word in getattr(part, "__metadata__", ()) if isinstance(word, str)]
            if words and getattr(part, "__origin__", None) in (Tensor, Tensor | None):
                found[name] = words[0]
    return found


def compare(where: str, said: str, tensor: Tensor, lengths: dict[str, Any]) -> None:
    axes, shape = said.split(), tuple(tensor.shape)
    free = axes.index("...") if "..." in axes else len(axes)
    names, behind = [name for name in axes if name != "..."], len(shape) - len(axes[free + 1 :])
    fits = len(shape) == len(names) or ("..." in axes and len(shape) > len(names))
    assert fits, f"{where} is {shape}, declared {said}"
    rest = shape[:free] + shape[behind:]
    if "..." in axes:
        any_ = shape[free:behind]
        assert lengths.setdefault("...", any_) == any_, f"{where}: its free axes are {any_}, not {lengths['...']}"
    for name, length in zip(names, rest, strict=True):
        expected = int(name) if name.isdigit() else lengths.setdefault(name, length)
        assert length == expected, f"{where} is {shape}, declared {said}: {name} is {expected} elsewhere"


def checked(function: Callable[..., Any], shapes: dict[str, str]) -> Callable[..., Any]:
    names = list(inspect.signature(function).parameters)
    known = {name: (f"{name} of {function.__qualname__}", said) for name, said in shapes.items()}

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        lengths: dict[str, Any] = {}
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in known and isinstance(value, Tensor):
                compare(*known[name], value, lengths)
        result = function(*args, **kwargs)
        if "return" in shapes and isinstance(result, Tensor):
            compare(f"the result of {function.__qualname__}", shapes["return"], result, lengths)
        return result

    return run


def watch(module: ModuleType) -> None:
    """Checks from now on every function and method of a module, just run, that declares shapes."""
    replaced: dict[int, Any] = {}
    owners = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
    for owner in (module, *owners):
        for name, value in list(vars(owner).items()):
            kind = type(value) if isinstance(value, staticmethod | classmethod) else None
            function = value.__func__ if kind else value
            if not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            if id(function) not in replaced and (shapes := shapes_of(function)):
                replaced[id(function)] = checked(function, shapes)
                WATCHED.append(f"{module.__name__}.{function.__qualname__}")
            if new := replaced.get(id(function)):
                setattr(owner, name, kind(new) if kind else new)


class _Checked(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        watch(module)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.partition(".")[0] in PACKAGES else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            if b"Annotated[Tensor" in spec.loader.get_data(spec.loader.path):
                spec.loader = _Checked(spec.loader.name, spec.loader.path)
        return spec


def watch_imports() -> None:
    early = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
    assert not early, f"imported before their shapes could be watched: {early}"
    sys.meta_path.insert(0, _Finder)
