"""The rules of the layout, read off the files themselves: who may import whom, and who may know a method's name."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peft_core.registry import method_files

ROOT = Path(__file__).parent.parent
WINGS = ("vision_peft", "clip_peft", "diffusion_peft")
PACKAGES = {"peft_core": ROOT, **dict.fromkeys(WINGS, ROOT), "peft_data": ROOT / "datasets"}
GROUND_STANDS_ON = {"torch", "safetensors", "peft_core", *sys.stdlib_module_names}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted((folder / package).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if "configs" not in parts:
                found[".".join(parts).removesuffix(".__init__")] = file
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str, lazy: bool) -> list[str]:
    """Dotted names that a module imports when it is imported; with `lazy` also those that its functions import."""
    return list(found_imports(module, lazy))


def found_imports(module: str, lazy: bool) -> Iterator[str]:
    for node in ast.walk(tree(module)) if lazy else tree(module).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module
        elif (
            not lazy
            and isinstance(node, ast.If | ast.Try)
            and "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", node))
        ):
            yield from (alias.name for part in node.body if isinstance(part, ast.Import) for alias in part.names)
            yield from (part.module for part in node.body if isinstance(part, ast.ImportFrom) and part.module)


def is_ground(module: str) -> bool:
    return module.partition(".")[0] == "peft_core" and not module.startswith("peft_core.jobs")


def test_the_ground_stands_on_torch_and_safetensors_alone() -> None:
    reaching = {
        (module, name)
        for module in modules()
        if is_ground(module)
        for name in imports(module, lazy=False)
        if name.partition(".")[0] not in GROUND_STANDS_ON or name.startswith("peft_core.jobs")
    }
    assert reaching == set()


def test_the_upper_floor_stands_on_the_ground_and_the_data_and_the_data_on_nothing_of_ours() -> None:
    for module in modules():
        top = module.partition(".")[0]
        ours = {name.partition(".")[0] for name in imports(module, lazy=True)} & PACKAGES.keys()
        if top == "peft_core":
            assert not ours & set(WINGS), module
        if top == "peft_data":
            assert ours <= {"peft_data"}, module


def test_wings_never_import_each_other() -> None:
    across = {
        (module, name)
        for module in modules()
        for name in imports(module, lazy=True)
        if (wing := name.partition(".")[0]) in WINGS
        and module.partition(".")[0] in WINGS
        and not module.startswith(wing)
    }
    assert across == set()


def test_no_circle_of_files() -> None:
    graph = {module: {name for name in imports(module, lazy=False) if name in modules()} for module in modules()}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in graph[module]:
                walk(name, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_nobody_names_a_method_but_its_own_file() -> None:
    """Neither by import nor by comparison; formats of files, configs and a wing's folder of that method apart."""
    names = {name: module for name, module in method_files().items()}
    found = []
    for module in modules():
        if ".formats" in module or ".files" in module or ".methods." in module or module.endswith(".methods"):
            continue
        for name in imports(module, lazy=True):
            if (
                ".methods." in name
                and name.rpartition(".")[2] in names
                and not own_folder(module, name.rpartition(".")[2])
            ):
                found.append((module, name))
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.Compare):
                continue
            told = {
                each.value
                for part in (node.left, *node.comparators)
                for each in ast.walk(part)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
            about = ast.unparse(node)
            for name in told & names.keys():
                if ("method" in about or ".name" in about) and not own_folder(module, name):
                    found.append((module, about))
    assert found == []


def own_folder(module: str, method: str) -> bool:
    return method in module.split(".")


def test_methods_register_no_hooks() -> None:
    with_hooks = [m for m in modules() if ".methods." in m and "register_" in modules()[m].read_text(encoding="utf-8")]
    assert [m for m in with_hooks if "_hook(" in modules()[m].read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_are_few_and_files_short(package: str) -> None:
    for module, file in modules().items():
        if module.partition(".")[0] != package:
            continue
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, f"{module}: {lines} lines"
        if file.name == "__init__.py" and not {"methods", "anatomies", "peft_data"} & set(module.split(".")):
            rooms = [each for each in file.parent.iterdir() if each.suffix == ".py" and each.stem != "__init__"]
            assert len(rooms) <= 22, f"{module}: {len(rooms)} rooms"


@pytest.mark.parametrize("folder", ["", "parity", "peft_core", "peft_data", *WINGS])
def test_files_of_tests_are_short(folder: str) -> None:
    for file in (ROOT / "tests" / folder).glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 300, file


@pytest.mark.parametrize("package", PACKAGES)
def test_texts_are_read_and_written_with_a_named_encoding(package: str) -> None:
    silent = []
    for module in modules():
        if module.partition(".")[0] != package:
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and not any(keyword.arg == "encoding" for keyword in node.keywords):
                method = isinstance(node.func, ast.Attribute)
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                binary = any(isinstance(arg, ast.Constant) and "b" in str(arg.value) for arg in node.args)
                if (method and called in ("read_text", "write_text")) or (
                    called == "open" and not method and not binary
                ):
                    silent.append((module, ast.unparse(node)))
    assert silent == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (PACKAGES[package] / package / "py.typed").is_file()


def shape(statement: ast.stmt) -> str:
    """A statement whatever its variables and constants are."""
    told, waiting, names = [], [statement], {}
    while waiting:
        node: Any = waiting.pop()
        told.append(type(node).__name__)
        if isinstance(node, ast.Name):
            told.append(names.setdefault(node.id, str(len(names))))
        elif isinstance(node, ast.Attribute | ast.keyword):
            told.append(str(getattr(node, "attr", "") or getattr(node, "arg", "")))
        waiting.extend(ast.iter_child_nodes(node))
    return " ".join(told)


def test_no_six_lines_of_logic_stand_twice_between_the_wings_and_the_upper_floor() -> None:
    """Runs of statements in functions that are alike but for names and constants; imports and docstrings apart."""
    places = defaultdict(set)
    for module in modules():
        part = module.partition(".")[0]
        if part not in WINGS and not module.startswith("peft_core.jobs"):
            continue
        for owner in ast.walk(tree(module)):
            body = getattr(owner, "body", None)
            if not isinstance(body, list) or isinstance(owner, ast.Module | ast.ClassDef):
                continue
            logic = [each for each in body if not isinstance(each, ast.Import | ast.ImportFrom)]
            logic = [each for each in logic if not isinstance(getattr(each, "value", None), ast.Constant)]
            lines, shapes = [each.end_lineno - each.lineno + 1 for each in logic], [shape(each) for each in logic]
            for start, statement in enumerate(logic):
                enough = (end for end in range(start + 1, len(logic) + 1) if sum(lines[start:end]) >= 6)
                if end := next(enough, 0):
                    places[tuple(shapes[start:end])].add((part, f"{module}:{statement.lineno}"))
    assert [sorted(found) for found in places.values() if len({part for part, _ in found}) > 1] == []


def test_no_run_is_kept_with_the_code() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if listed.returncode:
        return  # an unpacked archive of the sources
    names = [name for name in listed.stdout.splitlines() if not name.startswith("tests/")]
    assert not [name for name in names if name.endswith(("/results.json", "/predictions.csv", "/adapter.safetensors"))]
