"""How a method's name finds its class, and a preset's name its settings.

Names come from the files of the four packages' methods/ folders, from entry points of other packages (group
"peft_core.methods", `name = "module:Class"`), and from `register`. Nothing is imported but the method that is chosen: a file
that cannot be imported breaks nothing but itself.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from peft_core.config_files import list_configs
from peft_core.errors import PeftError, nearest
from peft_core.texts import classes_in, constants_of, file_of

if TYPE_CHECKING:  # names are listed without waiting for torch
    from peft_core.method import Method

PACKAGES = ("peft_core", "vision_peft", "clip_peft", "diffusion_peft")
GROUP = "peft_core.methods"

_M = TypeVar("_M", bound="type[Method]")
_registered: dict[str, type[Method]] = {}


@dataclass(frozen=True)
class Source:
    """Where a method's class stands; of a file of methods/ it is the one that is called as the file."""

    module: str
    file: Path | None
    qualname: str | None = None


def method_files() -> dict[str, str]:
    """Method name -> module that holds its class, of all that are known; imports nothing."""
    registered = {name: cls.__module__ for name, cls in _registered.items()}
    return {name: source.module for name, source in _sources().items()} | registered


@functools.cache
def _sources() -> dict[str, Source]:
    found = {}
    for entry in metadata.entry_points(group=GROUP):
        module, _, qualname = entry.value.partition(":")
        found[entry.name] = Source(module, file_of(module), qualname)
    for package in PACKAGES:
        home = file_of(package)
        folder = home.parent / "methods" if home else Path()
        for file in sorted(folder.rglob("*.py")) if home else ():
            if not file.stem.startswith("_"):
                inner = file.relative_to(folder).with_suffix("").parts
                found[file.stem] = Source(".".join((package, "methods", *inner)), file)
    return found


def register(method: _M) -> _M:
    """Make a method's class known by its name in this process, as a decorator; what loads its adapters must do so too."""
    name = snake_case(method.__name__)
    if name in _sources() or _registered.get(name, method) is not method:
        raise PeftError(f'there is a method "{name}" already: give the class another name.')
    _registered[name] = method
    return method


@contextmanager
def known_for_now(method: type[Method]) -> Iterator[None]:
    """Within the block a class that nothing finds is found by its name."""
    name = name_of(method)
    if name in method_files():
        yield
        return
    _registered[name] = method
    try:
        yield
    finally:
        del _registered[name]
        facts_of.cache_clear()


def find_method(name: str, known: Iterable[str] | None = None) -> type[Method]:
    """The class of the method called `name`.

    Args:
        known: the names to offer where there is none of that name; all where None.

    Raises:
        PeftError: there is none, or its file cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    source = _sources().get(name)
    if source is None:
        offered = sorted(method_files() if known is None else known)
        likely = nearest(name, [*offered, *list_configs("method")])
        raise PeftError(f'unknown method "{name}"{likely} (known: {", ".join(offered)}).')
    from peft_core.method import Method

    try:
        module = importlib.import_module(source.module)
        if source.qualname is not None:
            return functools.reduce(getattr, source.qualname.split("."), module)  # type: ignore[return-value,arg-type]
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError) as error:
        where = source.file or source.module
        raise PeftError(f'method "{name}" cannot be imported from {where}: {type(error).__name__}: {error}.') from error
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    chosen = [cls for cls in classes if _is_called(cls.__name__, name)] if len(classes) > 1 else classes
    if len(chosen) != 1:
        raise PeftError(f"{source.file} must define one method, called as the file is: it defines {len(classes)}.")
    return chosen[0]


def name_of(method: type[Method]) -> str:
    """The name that finds this class; that of the class itself, in snake case, where none does."""
    package, _, name = method.__module__.rpartition(".")
    if any(f"{package}.".startswith(f"{each}.methods.") for each in PACKAGES) and _is_the_one(method, name):
        return name
    for name, source in _sources().items():
        if (source.module, source.qualname) == (method.__module__, method.__qualname__):
            return name
    return snake_case(method.__name__)


def _is_the_one(method: type[Method], name: str) -> bool:
    source = _sources().get(name)
    return source is not None and source.module == method.__module__


def check_known(method: Method) -> None:
    """Raises PeftError unless an adapter file that names this method can find its class again."""
    known = method.name in method_files() and find_method(method.name) is type(method)
    if not known:
        cls = type(method)
        raise PeftError(
            f"no adapter file could find the method {cls.__qualname__} again: declare it as an entry point "
            f'[project.entry-points."{GROUP}"] {method.name} = "{cls.__module__}:{cls.__qualname__}", or decorate it with '
            "peft_core.registry.register."
        )


def snake_case(name: str) -> str:
    """`RowScale` as row_scale, `LoRA` as lora."""
    letters = [
        f"_{c}" if i and c.isupper() and name[i - 1].islower() and name[i + 1 : i + 2].islower() else c
        for i, c in enumerate(name)
    ]
    return "".join(letters).lower()


def _is_called(cls: str, file: str) -> bool:
    return cls.lower() == file.replace("_", "").lower()


# ---- what a method's text says -------------------------------------------------------------------------------------


def list_methods(grafts: bool | None = True) -> dict[str, str]:
    """Name -> first line of the docstring, for every method that `adapt` installs (False: the others, None: all)."""
    found = {name: facts_of(name) for name in sorted(method_files())}
    return {name: facts["about"] for name, facts in found.items() if grafts in (None, facts.get("grafts", True))}


def describe_method(name: str) -> str:
    """The first line of a method's docstring, read from its file's text."""
    return facts_of(name)["about"]


@functools.cache
def facts_of(name: str) -> dict[str, Any]:
    """What the text of a method's file says, read without importing it: its docstring's first line as `about`, and the
    constants of its class and of the classes it is made from (`grafts`, `suits`, `identity` …)."""
    if name in _registered:
        cls = _registered[name]
        return {key: getattr(cls, key) for key in dir(cls)} | _said(cls.__doc__ or "")
    source = _sources()[name]
    if source.file is None:
        return {"about": f"(of {source.module}, which is not there)"}
    try:
        classes = classes_in(source.file)
    except SyntaxError as error:
        return {"about": f"(cannot be read: {error.msg} in line {error.lineno})"}
    wanted = [each for each in classes.values() if each.name == source.qualname or _is_called(each.name, name)]
    if not wanted:
        return {"about": f"(no class called {name} in {source.file.name})"}
    facts = constants_of(wanted[0], source.file)
    return facts | _said(wanted[0].doc)


def _said(docstring: str) -> dict[str, str]:
    return {"doc": docstring, "about": docstring.strip().partition("\n")[0]}


# ---- presets and settings ------------------------------------------------------------------------------------------


def read_preset(name: str) -> dict[str, Any] | None:
    """The contents of the method preset `name` (a name in configs/*/method, or a YAML's path); None if it is neither."""
    path = list_configs("method").get(name)
    if path is None:
        path = Path(name).expanduser()
        if path.suffix not in (".yaml", ".yml"):
            return None
        if not path.is_file():
            raise PeftError(f"method file {name} does not exist.")
    return preset_in(path)


def preset_in(path: Path) -> dict[str, Any]:
    """The contents of a preset's file."""
    from peft_core.files import read_yaml

    content = read_yaml(path, "give another preset")
    if not isinstance(content.get("method"), str):
        raise PeftError(f"{path} is no method preset: it needs a line `method: NAME` and the method's own settings.")
    return content


def make_method(method: str | Method | Path, **hyper: Any) -> Method:
    """A method from its name, a preset's name or path, or its dataclass; `hyper` changes single settings."""
    from peft_core.method import Method

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
            raise PeftError(f'{name_of(cls)} has no setting "{key}"{nearest(key, known)} (it has: {", ".join(known)}).')
    return hyper
