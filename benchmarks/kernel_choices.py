"""Options that fix what peft_core/kernels choose by shape and device, so that a benchmark can say which choice is right."""

from __future__ import annotations

import argparse
from typing import Any

from peft_core.kernels import lowrank_conv, lowrank_linear, sparse
from peft_core.parts import decomposed, scale_shift


def add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--merging", choices=("by_shape", "always", "never"), default="by_shape",
                        help="low-rank layers in one precision: form W + s·B A, or add s·B (A x)")  # fmt: skip
    parser.add_argument("--inputs", choices=("rebuilt", "kept"), default="rebuilt",
                        help="what norms and activations gave: made again for the backward pass, or kept")  # fmt: skip


def choose(args: argparse.Namespace) -> None:
    """Makes the choices for the rest of the process."""
    if args.merging != "by_shape":
        for module in (lowrank_linear, lowrank_conv):
            module.merging_pays = lambda places, weight: args.merging == "always"  # type: ignore[attr-defined]
    if args.inputs == "kept":
        for module in (lowrank_linear, lowrank_conv, sparse, decomposed, scale_shift):
            module.kept_for = as_it_is  # type: ignore[attr-defined]


def as_it_is(y: Any) -> tuple[None, tuple[Any, ...]]:
    return None, (y,)
