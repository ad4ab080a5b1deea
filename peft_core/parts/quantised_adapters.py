"""What Bi-AdaptFormer and Bi-LoRA share: how they start, the head of few bits, and when a file's statistics are over."""

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.lifecycle import memory
from peft_core.parts.few_bits import RoundedHead, Rounding

if TYPE_CHECKING:
    from peft_core.method import Method, Plan


def down_and_up(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Kaiming-uniform (a = √5), and N(0, 0.001²) truncated at 2σ: a weight of zeros would have no deviation to divide by."""
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    nn.init.trunc_normal_(up, std=0.001, a=-0.002, b=0.002)
    return down, up


def round_heads(plan: "Plan", bits: int | None) -> None:
    """The classifier's weights read as rounded, where bits are given.

    Raises:
        PeftError: there is no linear classifier.
    """
    if bits is None:
        return
    heads = [path for path in plan.anatomy.heads if type(plan.model.get_submodule(path)) is nn.Linear]
    if not heads:
        raise PeftError(f"{plan.method.name} finds no linear classifier to round: leave head_bits out.")
    for path in heads:
        place = Place("rounded", path)
        plan.change_weight(place, RoundedHead(plan.stock(place), bits))


def forget_statistics(model: nn.Module, method: "Method") -> None:
    """After a step the weights have means and deviations of their own."""
    kept = memory(model, method)
    if not kept.get("moved"):
        for module in model.modules():
            if isinstance(module, Rounding):
                module.statistics.zero_()
        kept["moved"] = True
