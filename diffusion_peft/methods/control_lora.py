from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from diffusion_peft.control.encoders import SHRINK, empty_copy, new_parts, shared_copy
from diffusion_peft.control.files import write_changes
from diffusion_peft.control.method import ControlMethod
from diffusion_peft.methods.controlnet import Residuals
from peft_core.errors import PeftError
from peft_core.grafts.classes import swap_class
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from peft_core.values import Count, Positive

ENCODER = ("down_blocks.", "mid_block.", "time_embedding.", "add_embedding.")


class LeanEncoder(Residuals):
    """The UNet's own encoder run a second time, under low-rank changes; only these and the new parts belong to it."""

    def __init__(self, net: nn.Module, changes: dict[str, LowRank]) -> None:
        super().__init__()
        self.__dict__["net"] = net  # its weights are the UNet's: no submodule
        self.changes = nn.ModuleDict({path.replace(".", "/"): change for path, change in changes.items()})
        self.controlnet_cond_embedding = net.controlnet_cond_embedding
        self.controlnet_down_blocks = net.controlnet_down_blocks
        self.controlnet_mid_block = net.controlnet_mid_block

    def residuals(self, condition: dict[str, Tensor], given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        self.net.train(self.training)
        return super().residuals(condition, given)


@dataclass(frozen=True, kw_only=True)
class ControlLoRA(ControlMethod):
    """Control-LoRA: a ControlNet whose encoder is the UNet's own, changed at low rank.

    W_c = W + (α / r) B A for every linear and convolution of the encoder; hint encoder and zero convolutions are new, as
    in ControlNet. After the control-LoRAs of Stability AI (2023); theirs train biases and norms too. The base's weights
    are in memory once.

    Args:
        rank: r. alpha: α, the rank where None.
        targets: roles of the encoder that change.
        channels, shrink: as of controlnet.
    """

    rank: Count = 32
    alpha: Positive | None = None
    targets: Sequence[str] = ("attn", "cross_attn", "mlp", "proj_io", "conv", "time", "time_embed")
    channels: Count = 3
    shrink: Count | None = None

    file: ClassVar[str] = "control_lora.safetensors: changes to a ControlNetModel.from_unet"
    write = staticmethod(write_changes)
    not_mergeable: ClassVar[str | None] = (
        "it reads a condition; `export --format control` writes a file of its changes."
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(shrink=1, rank=2),)

    def install(self, plan: Plan) -> None:
        if self.rank < 1:
            raise PeftError(f"control_lora got the rank {self.rank}: it must be 1 or more.")
        net: Any = empty_copy(plan.model, self.shrink, self.channels)
        shared_copy(plan.model, net)
        new_parts(net, plan.options_at("conv_in"))
        changes: dict[str, LowRank] = {}
        for place, _ in plan.places(self.targets):
            if place.module.startswith(ENCODER):
                weight = plan.stock(place)
                rank = min(self.rank, *plan.shape(place))
                changes[place.module] = LowRank(weight, None, rank, (self.alpha or self.rank) / self.rank)
                attach_change(net.get_submodule(place.module), changes[place.module])
        root = LeanEncoder(net, changes)
        root.size = (self.channels, self.shrink or SHRINK)
        plan.join("", "branch", root)


def attach_change(module: nn.Module, change: LowRank) -> None:
    """A weight change at a module of the second encoder."""
    swap_class(module)
    module.add_module("peft", nn.ModuleDict({"control": nn.ModuleDict({"change": change})}))
