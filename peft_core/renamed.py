"""Modules under the names that they had before: models pickled then name them, and still open."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

MOVED = {
    **{f"peft_core.{name}": f"peft_core.parts.{name}" for name in (
        "lowrank", "decomposed", "scale_shift", "scaling", "factors", "bottleneck", "ranked")},
    **{f"peft_core.{name}": f"peft_core.kernels.{name}" for name in ("lowrank_linear", "lowrank_conv", "rebuild")},
    **{f"peft_core.{name}": f"peft_core.grafts.{name}" for name in ("attention", "calls")},
    "peft_core.weight_changes": "peft_core.grafts.classes",
    **{f"clip_peft.{name}": f"clip_peft.text.{name}" for name in ("tower", "prompts", "packing", "templates")},
    "clip_peft.text_pass": "clip_peft.text.run",
    **{f"vision_peft.{name}": f"vision_peft.video.{name}" for name in ("joint", "over_time", "videomae", "views")},
}  # fmt: skip


class Renamed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name, where nothing else is found: a copy of the new one's names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if _new_name(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        new = importlib.import_module(str(_new_name(module.__name__)))
        vars(module).update(
            {key: value for key, value in vars(new).items() if not key.startswith("__") or key == "__file__"}
        )


def _new_name(old: str) -> str | None:
    package, _, name = old.rpartition(".")
    if old in MOVED:
        return MOVED[old]
    if package == "peft_core.methods":  # each stands in the folder of its branch of the taxonomy
        for file in sorted((Path(__file__).parent / "methods").glob(f"*/{name}.py")):
            return f"{package}.{file.parent.name}.{name}"
    return None


def install() -> None:
    """Has old names found, after all others."""
    if not any(isinstance(finder, Renamed) for finder in sys.meta_path):
        sys.meta_path.append(Renamed())
