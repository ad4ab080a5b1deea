"""A sweep's folder: whose plan it holds, which runs in it are finished, and what they depended on.

config.yaml   the plan; `vision_peft sweep --config FOLDER` runs it again
runs/TASK/METHOD/[POINT/]test-seed0/          a run folder: config.yaml, results.json, adapter/
runs/TASK/METHOD/[POINT/]test-seed0.stamp     what its result depends on: versions of package, method, data, weights
errors/       tracebacks of failing runs
results.csv  grid.csv  table.md  report.html
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import peft_data.cache_file
from filelock import FileLock, Timeout

import peft_core
from peft_core.config_files import find_config
from peft_core.errors import PeftError
from peft_core.files import is_used, write_files
from peft_core.line import read_yaml
from peft_core.options import MethodChoice
from peft_core.runs import CONFIG, RESULTS
from vision_peft import reference
from vision_peft.fit import absolute
from vision_peft.sweep_plan import Job

STAMP = ".stamp"
PROGRAM, LOCK = "vision_peft sweep", ".lock"
LEAST_FREE = 100 << 20


class SweepFolder:
    """The folder of one sweep; within `with` no other process runs it."""

    def __init__(self, path: str, plan: dict[str, Any], overwrite: bool, program: str = PROGRAM) -> None:
        self.program = program
        self.path = Path(path).expanduser().absolute()
        if self.path.is_file():
            raise PeftError(f"{self.path} is a file: give --out another folder.")
        config = self.path / CONFIG
        if config.is_file():
            content = read_yaml(config)
            if content.get("command") != program:
                raise PeftError(f"{self.path} holds something else than a sweep: give --out another folder.")
            differing = [key for key in plan if content.get(key) != plan[key]]
            if differing and not overwrite:
                key = differing[0]
                raise PeftError(
                    f"{self.path} holds another sweep ({key} is {content.get(key)} there, {plan[key]} here): give another "
                    "--out, or --overwrite to change its plan; runs that both plans have are kept."
                )
        elif is_used(self.path, own={LOCK}):
            raise PeftError(f"{self.path} holds files that are no sweep's: give --out another folder.")
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_space()
        self.lock = FileLock(self.path / LOCK)
        self.plan = plan

    def __enter__(self) -> SweepFolder:
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise PeftError(f"another process is running the sweep {self.path}: wait for it, or stop it.") from error
        self.write_plan()
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def check_space(self) -> None:
        free = shutil.disk_usage(self.path).free
        if free < LEAST_FREE:
            raise PeftError(
                f"{self.path} has {free / 2**20:.0f} MiB of free space, too little for adapters and results: make room or "
                "give --out a folder on another disk."
            )

    def write_plan(self) -> None:
        import yaml

        text = f"# Run this again, or go on with it: {self.program} --config {self.path}\n"
        content = {"command": self.program} | self.plan | {"out": str(self.path)}
        write_files(self.path, {CONFIG: (text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode()})

    def results(self, job: Job) -> dict[str, Any] | None:
        """The results of a finished run, whatever version made them."""
        path = self.path / job.folder / RESULTS
        return json.loads(path.read_text()) if path.is_file() else None

    def is_finished(self, job: Job) -> bool:
        return (self.path / job.folder / RESULTS).is_file()

    def differs(self, job: Job, stamp: dict[str, str]) -> str:
        """How a finished run's stamp differs from the one it would get now; "" where it does not."""
        path = self.path / f"{job.folder}{STAMP}"
        old = json.loads(path.read_text()) if path.is_file() else {}
        new = stamp | (stamp_of_recipe(old["recipe"].partition(" ")[0]) if "recipe" in old else {"recipe": "?"})
        differing = [
            f"{key} {old.get(key, 'unknown')} there, {new[key]} now" for key in new if old.get(key) != new[key]
        ]
        return differing[0] if differing else ""

    def forget(self, job: Job) -> None:
        """Makes a finished run an unfinished one, whose files `carry_out` will clear."""
        (self.path / f"{job.folder}{STAMP}").unlink(missing_ok=True)
        (self.path / job.folder / RESULTS).unlink(missing_ok=True)

    def note_error(self, job: Job, trace: str) -> None:
        name = job.folder.removeprefix("runs/").replace("/", " ") + ".txt"
        if trace:
            write_files(self.path / "errors", {name: trace.encode()})
        else:
            (self.path / "errors" / name).unlink(missing_ok=True)


def stamp_of(job: Job) -> dict[str, str]:
    """What the results of a run depend on, its recipe apart: versions, and hashes of what has no version."""
    return {
        "package": peft_core.__version__,
        "settings": _hash(json.dumps(job.settings, sort_keys=True).encode()),
        "method": stamp_of_method(job.settings["method"]["name"]),
        "data": stamp_of_data(job.task),
        "backbone": stamp_of_backbone(job.settings["backbone"]),
    }


@functools.cache
def stamp_of_recipe(name: str) -> dict[str, str]:
    """Of its settings: a comment changes no result."""
    settings = read_yaml(find_config("recipe", name, "vision"))
    return {"recipe": f"{name} {_hash(json.dumps(settings, sort_keys=True).encode())}"}


@functools.cache
def stamp_of_method(name: str) -> str:
    """Of the method's code, comments and docstrings apart, and of the preset's settings."""
    module = inspect.getmodule(MethodChoice.accepts(name))
    assert module is not None
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Module)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return _hash((ast.dump(tree) + json.dumps(MethodChoice.preset(name), sort_keys=True)).encode())


@functools.cache
def stamp_of_data(task: str) -> str:
    """The version of what draws or decodes the pictures."""
    format_name = task.partition("/")[0]
    if task.startswith("world/motion/"):
        return f"clips {importlib.import_module('peft_data.world_motion').VERSION}"
    if format_name == "world":
        return f"world {importlib.import_module('peft_data.world').VERSION}"
    return f"pictures {peft_data.cache_file.VERSION}"


@functools.cache
def stamp_of_backbone(spec: str) -> str:
    """The weights: a hash of their file, or for a name of a hub the name."""
    path = reference.WEIGHTS if spec == "reference" else Path(absolute(spec).rpartition("@")[2])
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    digest = hashlib.blake2b(digest_size=6)
    for file in files:
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    return f"{spec} {digest.hexdigest()}" if files else spec


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def write_json(path: Path, content: Any) -> None:
    write_files(path.parent, {path.name: json.dumps(content).encode()})
