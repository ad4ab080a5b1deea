"""`--flow.density logit_normal …`: how a flow is trained, of bases that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from peft_core.jobs.cli.options import Choice
from peft_core.values import NotNegative, Positive


def flow(
    density: Literal["uniform", "logit_normal", "mode"] = "uniform",
    mean: float = 0.0,
    std: Positive = 1.0,
    mode_scale: NotNegative = 1.29,
    weight: Literal["none", "sigma_sqrt", "cosmap", "preconditioned"] = "none",
    shift: str = "base",
    guidance: NotNegative | None = None,
) -> None:
    """Options of flow matching; the defaults are those of diffusers' scripts.

    Args:
        density: How often each share of noise is trained: uniform, logit_normal (its middle more), or mode.
        mean: Of logit_normal; above 0 nearer to the picture.
        std: Of logit_normal.
        mode_scale: Of mode.
        weight: Of the loss at σ: none, sigma_sqrt (1/σ²), cosmap, or preconditioned (σ²: the scripts' precondition_outputs).
        shift: Towards noise: base, as the base's scheduler says; resolution, as it draws a picture of this size; or a number.
        guidance: The scale that a guidance-distilled base (Flux.1 dev) is told in training; diffusers' scripts take 3.5, and 1
            trains what is drawn without guidance.
    """


class FlowOptions(Choice):
    """`--flow.density logit_normal --flow.shift 3`."""

    named, complete, brief = False, False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return flow
