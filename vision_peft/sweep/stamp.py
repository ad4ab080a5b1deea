"""What the result of a sweep's run depends on, kept beside it: `runs/TASK/METHOD/[POINT/]test-seed0.stamp`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from pathlib import Path

import peft_data.cache_file

import peft_core
from peft_core.config_files import find_config
from peft_core.files import read_json, read_yaml
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.folder import RESULTS
from peft_core.jobs.sweep.code import code_hash
from peft_core.jobs.sweep.jobs import Job
from vision_peft import reference

STAMP = ".stamp"


def differs(out: Path, job: Job) -> str:
    """How the stamp of a finished run in the sweep's folder differs from the one it would get now; "" where it does not."""
    path = out / f"{job.folder}{STAMP}"
    old = read_json(path) if path.is_file() else {}
    new = stamp_of(job)
    new |= stamp_of_recipe(old["recipe"].partition(" ")[0]) if "recipe" in old else {"recipe": "?"}
    differing = [f"{key} {old.get(key, 'unknown')} there, {new[key]} now" for key in new if old.get(key) != new[key]]
    return differing[0] if differing else ""


def forget(out: Path, job: Job) -> None:
    """Makes a finished run an unfinished one, whose files `carry_out` will clear."""
    (out / f"{job.folder}{STAMP}").unlink(missing_ok=True)
    (out / job.folder / RESULTS).unlink(missing_ok=True)


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
    """Of all code that a run of the method imports, comments and docstrings apart, and of the preset's settings."""
    code = code_hash("vision_peft.job", "vision_peft.fit", MethodChoice.accepts(name).__module__)
    return _hash((code + json.dumps(MethodChoice.preset(name), sort_keys=True)).encode())


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
