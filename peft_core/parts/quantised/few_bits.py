"""Weights of few bits: each number is the nearest of 2^bits levels of the normal distribution, times the weight's own
standard deviation, plus its mean; trained through the rounding as if it were not there.

Jie et al., "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy", ICCV 2023.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.grafts.packing import PackedOnDisk
from peft_core.lifecycle import memory

if TYPE_CHECKING:
    from peft_core.method import Method, Plan

EPS = 1e-5


@cache
def levels(bits: int) -> tuple[Tensor, Tensor]:
    """The levels (2^bits), and where between them numbers are split (2^bits − 1).

    Each level stands at the middle, by probability, of what is nearest to it (500 rounds from zero, as JieShibo/PETL-ViT).
    """
    found = torch.zeros(2**bits, dtype=torch.float64)
    for _ in range(500):
        edges = (found[1:] + found[:-1]) / 2
        share = torch.cat((edges.new_zeros(1), torch.special.ndtr(edges), edges.new_ones(1)))
        found = torch.special.ndtri((share[1:] + share[:-1]) / 2)
    return found, edges


class Rounding(nn.Module, PackedOnDisk):
    """Rounds a weight, and packs it into `bits` bits a number, its mean and its standard deviation.

    `statistics` holds the mean and deviation that came with a file, until the weight moves; 0 where the weight's own count.
    """

    statistics: Tensor
    codes: Tensor
    edges: Tensor
    weight_name = "weight"
    shape: torch.Size

    def __init__(self, weight: Tensor, bits: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.bits, self.shape = bits, weight.shape
        self.register_buffer("statistics", torch.zeros(2, **options))
        for name, values in zip(("codes", "edges"), levels(bits), strict=True):
            self.register_buffer(name, values.to(**options), persistent=False)

    def standard(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(w − mean) / deviation, the mean and the deviation."""
        given = self.statistics[1] > 0
        mean = torch.where(given, self.statistics[0], weight.mean())
        std = torch.where(given, self.statistics[1], weight.std())
        return (weight - mean) / (std + EPS), mean, std

    def round(self, weight: Annotated[Tensor, "rows columns"]) -> Annotated[Tensor, "rows columns"]:
        z, mean, std = self.standard(weight)
        nearest = self.codes[torch.bucketize(z.detach(), self.edges)]
        return (nearest + (z - z.detach())) * std + mean  # the value of the level to the last bit, the gradient of z

    @torch.no_grad()
    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        z, mean, std = self.standard(tensors[self.weight_name])
        chosen = torch.bucketize(z.flatten(), self.edges)
        return torch.cat((to_bits(chosen, self.bits), torch.stack((mean, std)).view(torch.uint8)))

    def unpack(self, data: Tensor) -> dict[str, Tensor]:
        size = data.numel() - 2 * self.statistics.element_size()
        statistics = data[size:].clone().view(self.statistics.dtype).to(self.statistics.device)
        chosen = from_bits(data[:size], self.bits, self.shape.numel()).to(self.codes.device, torch.long)
        weight = self.codes[chosen] * (statistics[1] + EPS) + statistics[0]
        return {self.weight_name: weight.view(self.shape), "statistics": statistics}

    def packed_size(self, tensors: Mapping[str, Tensor]) -> int:
        return -(-self.shape.numel() * self.bits // 8) + 2 * self.statistics.element_size()


class FewBits(Rounding):
    """A weight (rows, columns) that trains, and reads as rounded."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits, dict(device=weight.device, dtype=weight.dtype))
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.round(self.weight)


class RoundedHead(Delta):
    """W' = round(W) of a classifier, whose weight trains; its bias stays as it is."""

    needs_matrix = True

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.rounding = OfStock(
            weight, bits, dict(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        )

    def forward(self, weight: Tensor) -> Tensor:
        return self.rounding.round(weight).to(weight.dtype)


class OfStock(Rounding):
    packs_stock = ("weight",)
    weight_name = "stock.weight"


def to_bits(chosen: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits as bytes, the lowest bit first."""
    ones = (chosen[:, None] >> torch.arange(bits, device=chosen.device)) & 1
    flat = nn.functional.pad(ones.flatten(), (0, -ones.numel() % 8)).view(-1, 8)
    return (flat << torch.arange(8, device=chosen.device)).sum(1).to(torch.uint8)


def from_bits(data: Tensor, bits: int, count: int) -> Tensor:
    """What `to_bits` was given, as bytes."""
    places = torch.arange(8, dtype=torch.uint8, device=data.device)
    ones = ((data[:, None] >> places) & 1).flatten()[: count * bits].view(count, bits)
    return (ones << places[:bits]).sum(1, dtype=torch.uint8)


# ---- adapters of few bits ------------------------------------------------------------------------------------------


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
