"""How a method's name finds its file, and a preset's name its settings."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from peft_core.config_files import list_configs
from peft_core.errors import PeftError, nearest
from peft_core.files import read_yaml
from peft_core.method import Method

PACKAGES = ("peft_core", "vision_peft", "clip_peft", "diffusion_peft")


@functools.cache
def method_files() -> dict[str, str]:
    """Method name -> module, over the packages' methods/ folders, without importing them."""
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(f"{package}.methods")
        for folder in spec.submodule_search_locations or () if spec else ():
            for file in sorted(Path(folder).rglob("*.py")):
                if not file.stem.startswith("_"):
                    inner = file.relative_to(folder).with_suffix("").parts
                    found[file.stem] = ".".join((package, "methods", *inner))
    return found


@functools.cache
def describe_method(name: str) -> str:
    """The first line of a method's docstring, read from its file, which is not imported."""
    spec = importlib.util.find_spec(method_files()[name])
    tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.decorator_list]
    documented = [text for node in classes if (text := ast.get_docstring(node))]
    return documented[-1].splitlines()[0] if documented else ""


def list_methods(grafts: bool | None = True) -> dict[str, str]:
    """Name -> first line of the docstring, for every method file that `adapt` installs (False: the others, None: all)."""
    methods = {name: find_method(name) for name in sorted(method_files())}
    return {
        name: (method.__doc__ or "").strip().splitlines()[0]
        for name, method in methods.items()
        if grafts in (None, method.grafts)
    }


def find_method(name: str) -> type[Method]:
    """The dataclass of the method whose file is called `name`."""
    if name not in method_files():
        known = [*method_files(), *list_configs("method")]
        raise PeftError(f'unknown method "{name}"{nearest(name, known)} (known: {", ".join(sorted(method_files()))}).')
    module = importlib.import_module(method_files()[name])
    (method,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    )
    return method


def read_preset(name: str) -> dict[str, Any] | None:
    """The contents of the method preset `name` (a name in configs/*/method, or a YAML's path); None if it is neither."""
    path = list_configs("method").get(name)
    if path is None:
        path = Path(name).expanduser()
        if path.suffix not in (".yaml", ".yml"):
            return None
        if not path.is_file():
            raise PeftError(f"method file {name} does not exist.")
    content = read_yaml(path, "give another preset")
    if not isinstance(content.get("method"), str):
        raise PeftError(f"{path} is no method preset: it needs a line `method: NAME` and the method's own settings.")
    return content


def make_method(method: "str | Method | Path", **hyper: Any) -> Method:
    """A method from its name, a preset's name or path, or its dataclass; `hyper` changes single settings."""
    if isinstance(method, Method):
        return dataclasses.replace(method, **_checked(type(method), hyper)) if hyper else method
    name, settings = str(method), {}
    if name not in method_files() and (preset := read_preset(name)) is not None:
        settings = {key: value for key, value in preset.items() if key != "method"}
        name = preset["method"]
    cls = find_method(name)
    return cls(**_checked(cls, settings | hyper))


def _checked(cls: type[Method], hyper: dict[str, Any]) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in hyper:
        if key not in known:
            name = cls.__module__.rpartition(".")[2]
            raise PeftError(f'{name} has no setting "{key}"{nearest(key, known)} (it has: {", ".join(known)}).')
    return hyper
