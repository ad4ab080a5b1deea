from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.method import Method, Plan
from peft_core.parts.factors import add_scaled, new_parameter
from peft_core.values import Count


class Columns(Delta):
    """W' = W + (0, S), for a convolution's inputs from `first` on; S (out, in − first, kh, kw) starts at 0."""

    commutes = True

    def __init__(self, weight: Tensor, first: int):
        super().__init__()
        self.first = first
        self.columns = new_parameter(weight, weight.shape[0], weight.shape[1] - first, *weight.shape[2:])
        torch.nn.init.zeros_(self.columns)

    def forward(self, weight: Tensor) -> Tensor:
        own, rest = weight[:, : self.first], weight[:, self.first :]
        return torch.cat([own, add_scaled(rest, self.columns, 1.0)], 1)


@dataclass(frozen=True, kw_only=True)
class SourceChannels(Method):
    """The weights of a UNet's first convolution for the channels of a source picture, beside a method for all else.

    Brooks et al., "InstructPix2Pix: Learning to Follow Image Editing Instructions", CVPR 2023, section 3.2: conv_in reads the
    source's latents behind the noised ones, by weights that start at 0. There, and in diffusers' train_instruct_pix2pix.py, the
    whole UNet trains; here what the convolution makes of the noised latents stays frozen. Merges. 11,520 parameters on SD 1.5.

    Args:
        first: the channel from which on they train: how many the UNet had.
    """

    first: Count = 4

    grafts: ClassVar[bool | None] = None
    completes: ClassVar[str] = "source"
    """What a family finds it by, where its denoiser was widened."""
    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet",)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(first=2),)

    def install(self, plan: Plan) -> None:
        place = Place("layer", "conv_in")
        weight = plan.stock(place)
        if self.first >= weight.shape[1]:
            raise PeftError(
                f"source_channels got first {self.first}, and this UNet has {weight.shape[1]} channels: widen it first."
            )
        plan.change_weight(place, Columns(weight, self.first))
