"""What holds in every test: shapes that functions declare are checked, and the versions at work are printed."""

import platform
from importlib import metadata
from typing import Any

from tests.shapes import install

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "diffusers",
    "peft",
    "lightning",
    "datasets",
    "numpy",
)

DECLARING = (
    "peft_core.kernels.frozen_down",
    "peft_core.kernels.lowrank_linear",
    "peft_core.kernels.sparse",
    "peft_core.kernels.twice",
    "peft_core.parts.bottleneck",
    "peft_core.parts.decomposed",
    "peft_core.parts.few_bits",
    "peft_core.parts.lowrank",
    "peft_core.parts.packed",
    "peft_core.parts.scale_shift",
    "peft_core.parts.selection.contrast",
    "peft_core.grafts.branch",
    "peft_core.grafts.tokens",
    "peft_core.grafts.weight_changes",
    "peft_core.passes.prefix",
)
WATCHED = install(DECLARING)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    terminalreporter.write_line(f"Python {platform.python_version()}, {versions}")
