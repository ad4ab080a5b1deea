"""Shapes that functions declare are checked at every call while the tests run.

A parameter or result annotated `Annotated[Tensor, "B N D"]` has three axes; an axis of one name has one length throughout a
call, a number is that length, and `...` stands for any axes, the same ones wherever it stands.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

OURS = ("peft_core", "vision_peft", "clip_peft", "diffusion_peft", "tests", "benchmarks")


def declaring(package: str) -> list[str]:
    """The modules of a package that declare shapes."""
    root = Path(__file__).parent.parent
    found = (file for file in (root / package).rglob("*.py") if "Annotated[Tensor" in file.read_text(encoding="utf-8"))
    return sorted(".".join(file.relative_to(root).with_suffix("").parts) for file in found)


def shapes_of(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter (or `return`) -> what its annotation says of its axes."""
    if not any("Annotated[" in str(hint) for hint in getattr(function, "__annotations__", {}).values()):
        return {}
    found = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
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


def install(modules: Sequence[str]) -> list[str]:
    """Checks every function and method of these modules that declares shapes; their names."""
    watched: list[str] = []
    replaced: dict[int, Any] = {}
    for module in map(importlib.import_module, modules):
        for name, value in list(vars(module).items()):
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for key, method in list(vars(value).items()):
                    if inspect.isfunction(method) and (shapes := shapes_of(method)):
                        setattr(value, key, checked(method, shapes))
                        watched.append(f"{module.__name__}.{name}.{key}")
            elif inspect.isfunction(value) and value.__module__ == module.__name__ and (shapes := shapes_of(value)):
                replaced[id(value)] = checked(value, shapes)
                watched.append(f"{module.__name__}.{name}")
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in OURS]
    for module in ours:
        for name, value in list(vars(module).items()):
            if id(value) in replaced and inspect.isfunction(value):
                setattr(module, name, replaced[id(value)])
            elif inspect.isclass(value) and value.__module__ in modules:
                for key, method in list(vars(value).items()):
                    if isinstance(method, staticmethod) and id(method.__func__) in replaced:
                        setattr(value, key, staticmethod(replaced[id(method.__func__)]))
    return watched
