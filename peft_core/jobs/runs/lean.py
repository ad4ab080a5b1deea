"""A quick start: Lightning and optimisers without the libraries of metrics and the compiler that a run does not use."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNUSED = ("transformers", "scipy", "matplotlib", "torchvision", "torchaudio", "librosa", "nltk", "pesq", "onnxruntime")
COMPILER = "torch._dynamo"
own_process = False
"""Whether this process is a program's own, which may choose what of torchmetrics works in it; `main` says so."""


def leave_out_metrics() -> None:
    """Imports torchmetrics, which Lightning imports whole, so that it believes the libraries of its metrics of texts, sound
    and generated pictures to be missing: importing those takes longer than all else that a short run does. Does nothing
    in another program's process."""
    if not own_process or "torchmetrics" in sys.modules:
        return
    # another torchmetrics starts as slowly as it does
    with contextlib.suppress(ImportError, OSError, AttributeError):
        whole = importlib.util.find_spec("torchmetrics")
        name = "torchmetrics.utilities.imports"
        file = f"{whole.submodule_search_locations[0]}/utilities/imports.py"  # type: ignore
        spec = importlib.util.spec_from_file_location(name, file)
        flags = importlib.util.module_from_spec(spec)  # type: ignore
        spec.loader.exec_module(flags)  # type: ignore
        for flag in vars(flags).values():
            if str(getattr(flag, "requirement", None) or "").partition(">")[0] in UNUSED:
                flag.available, flag.message = False, f"{flag.requirement} is left out for a quick start"
        sys.modules[name] = flags
        hidden = [each for each in ("scipy",) if each not in sys.modules]
        sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
        try:
            importlib.import_module("torchmetrics")
        finally:
            for each in hidden:
                del sys.modules[each]


def leave_out_compiler() -> None:
    """Has `torch._dynamo`, which Lightning, torchvision and torch's optimisers import on their way and which takes longer
    than all of torch, read only where something is compiled. Does nothing in another program's process."""
    if own_process and COMPILER not in sys.modules:
        import torch

        utils = Later(f"{COMPILER}.utils", is_compile_supported=is_compile_supported)
        later = Later(COMPILER, graph_break=graph_break, disable=disable, OptimizedModule=OptimizedModule, utils=utils)
        torch._dynamo = later
        sys.modules |= {module.__name__: module for module in (later, utils)}
        sys.meta_path.insert(0, Inside)


def compiler() -> ModuleType | None:
    """The compiler, where it has been imported."""
    there = sys.modules.get(COMPILER)
    return None if isinstance(there, Later) else there


def import_compiler() -> ModuleType:
    """The compiler itself, in the place of what stood for it."""
    if compiler() is None:
        for name in (COMPILER, f"{COMPILER}.utils"):
            sys.modules.pop(name, None)
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not Inside]
    return importlib.import_module(COMPILER)


class Later(ModuleType):
    """Stands for a module of the compiler, and knows what is asked of it where nothing is compiled; the rest is the real
    one's, which then is imported."""

    __path__: list[str] = []

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # what a walk over all modules asks
            raise AttributeError(key)
        import_compiler()
        return getattr(importlib.import_module(self.__name__), key)


class Inside(Loader):
    """Finds any other module of the compiler while that is not imported: it is imported first, and that module with it."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}."):
            return None
        import_compiler()
        return importlib.util.spec_from_loader(name, cls(importlib.import_module(name)))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def graph_break(msg: str = "") -> None:
    """Nothing, outside what is compiled."""


def disable(fn: Callable, recursive: bool = True, **more: Any) -> Callable:
    """The function as it is; once there is a compiler, as that leaves it out."""

    @functools.wraps(fn)
    def plain(*args: Any, **kwargs: Any) -> Any:
        there = compiler()
        return (fn if there is None else there.disable(fn, recursive, **more))(*args, **kwargs)

    return plain


def is_compile_supported(device_type: Any) -> bool:
    return import_compiler().utils.is_compile_supported(device_type)


class _Compiled(type):
    def __instancecheck__(cls, instance: object) -> bool:
        there = compiler()
        return there is not None and isinstance(instance, there.OptimizedModule)


class OptimizedModule(metaclass=_Compiled):
    """Nothing is one before there is a compiler."""
