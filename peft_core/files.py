"""Files: written whole or not at all, and read as the untrusted input that they are."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from peft_core.errors import PeftError

if TYPE_CHECKING:  # a program answers without waiting for torch
    from torch import Tensor

_TEMPORARY = re.compile(r"\..+\.\d+")
"""`.NAME.PROCESS`, the name of a file of `write_files` before it is complete, or of the one that it replaces."""
LARGEST = 64 << 20
"""Bytes of a text file that is read whole."""
DEEPEST, MOST_VALUES = 64, 1_000_000
"""Lists within lists, and values in all, of a JSON or YAML file."""


# ---- writing -------------------------------------------------------------------------------------------------------


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """All of these files or none: each is complete on disk before the first takes its place, and where one cannot take
    its place, those before it give theirs back.

    Raises:
        PeftError: the folder cannot be written.
    """
    new = {name: folder / f".{name}.{os.getpid()}" for name in files}
    old = {name: folder / f".{name}.old.{os.getpid()}" for name in files}
    placed: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with open(new[name], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            if len(files) > 1 and (folder / name).is_file():
                _keep(folder / name, old[name])
        for name in files:
            os.replace(new[name], folder / name)
            placed.append(name)
        _sync(folder)
    except OSError as error:
        for name in placed:
            if old[name].exists():
                os.replace(old[name], folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        raise PeftError(
            f"cannot write to {folder} ({error.strerror or error}): what stood there is unchanged; make room or give another "
            "--out."
        ) from error
    finally:
        for path in (*new.values(), *old.values()):
            with contextlib.suppress(OSError):
                path.unlink()


def _keep(path: Path, copy: Path) -> None:
    """A second name for a file, or a copy on a disk that knows no second names."""
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)


def _sync(folder: Path) -> None:
    """Has the disk know the folder's new names, where the system offers that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(handle)
    except OSError:
        pass  # nor do some network disks
    finally:
        os.close(handle)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_text(path: Path, remedy: str = "check the file") -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        PeftError: it is missing, too large, or no UTF-8; the sentence names the file and ends with the remedy.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise PeftError(f"{path} has {path.stat().st_size >> 20} MiB, too much for such a file: {remedy}.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PeftError(f"{path} is no UTF-8 text (byte {error.start}): {remedy}, or save it as UTF-8.") from error
    except OSError as error:
        raise PeftError(f"{path} cannot be read ({error.strerror or error}): {remedy}.") from error


def read_json(path: Path, remedy: str = "check the file") -> Any:
    """The contents of a JSON file.

    Raises:
        PeftError: as `read_text`; or it is no JSON, or nested too deep.
    """
    return parse_json(read_text(path, remedy), path, remedy)


def parse_json(text: str, where: object, remedy: str = "check the file") -> Any:
    """JSON from the middle of something: a line, a header. `where` is what the error names; see `read_json`."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise PeftError(f"{where} is damaged, no JSON ({error}): {remedy}.") from error
    except RecursionError as error:
        raise PeftError(f"{where} is nested too deep: {remedy}.") from error
    return _bounded(content, where, remedy)


def read_yaml(path: Path, remedy: str = "check the file") -> dict[str, Any]:
    """A YAML file's mapping; {} where it is empty.

    Raises:
        PeftError: as `read_text`; or it is no YAML, no mapping, has a key twice, or is nested too deep.
    """
    import yaml

    try:
        content = yaml.load(read_text(path, remedy), Loader=_loader())
    except yaml.YAMLError as error:
        raise PeftError(
            f"{path} is damaged: it is no readable YAML ({' '.join(str(error).split())}): {remedy}."
        ) from error
    except RecursionError as error:
        raise PeftError(f"{path} is nested too deep: {remedy}.") from error
    except ValueError as error:  # a date with a 13th month
        if isinstance(error, PeftError):
            raise
        raise PeftError(f"{path} is damaged: it is no readable YAML ({error}): {remedy}.") from error
    if not isinstance({} if content is None else content, dict):
        raise PeftError(f"{path} must hold `option: value` lines: {remedy}.")
    return _bounded(content or {}, path, remedy)


def _bounded(content: Any, where: object, remedy: str) -> Any:
    """The contents, unless YAML's references blow them up or they are nested too deep."""
    values, level = [content], 0
    seen = 0
    while values:
        seen, level = seen + len(values), level + 1
        if seen > MOST_VALUES or level > DEEPEST:
            raise PeftError(f"{where} is nested too deep or holds too much: {remedy}.")
        values = [
            inner
            for value in values
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return content


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands there twice, of which YAML keeps the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = [each.value for each, _ in node.value if isinstance(each, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.MarkedYAMLError(None, None, f'"{key}" stands there twice', node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


def must_encode(texts: Collection[str], what: str) -> None:
    """Raises PeftError: a text with bytes that are no UTF-8, which no file of a run can hold."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise PeftError(f'{what} "{shown}" is no UTF-8 text, so it cannot be written down: rename it.') from error


def read_shipped(file: Path, command: str) -> dict[str, Tensor]:
    """Weights that ship with the package, in float32.

    Args:
        command: what trains them.

    Raises:
        PeftError: the file is missing or damaged.
    """
    from safetensors.torch import load_file

    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise PeftError(
            f"the reference weights {file} cannot be read ({error}); reinstall the package or train them again "
            f"with {command}"
        ) from error


def left_by_killed_writers(folder: Path) -> list[Path]:
    """The incomplete files of `write_files` in a folder that no process writes to now."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def is_used(folder: Path, own: Collection[str] = ()) -> bool:
    """Whether a folder exists and holds more than what killed writers leave and the names of `own`."""
    return folder.is_dir() and any(
        path.name not in own and not _TEMPORARY.fullmatch(path.name) for path in folder.iterdir()
    )


def cache_root() -> Path:
    """Where what can be made again is kept: $VISUAL_PEFT_CACHE, else $XDG_CACHE_HOME/visual-peft, else
    ~/.cache/visual-peft."""
    own = os.environ.get("VISUAL_PEFT_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visual-peft").expanduser()
