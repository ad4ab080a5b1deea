from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from diffusion_peft.control.branch import Control, add_residuals
from diffusion_peft.control.encoders import SHRINK
from diffusion_peft.control.files import write_model
from diffusion_peft.control.method import ControlMethod
from peft_core.method import Method, Plan
from peft_core.values import Count


class Maps(Control):
    """Feature maps of the condition, made once a picture, added in the UNet's encoder."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def prepared(self, condition: dict[str, Tensor]) -> list[Tensor]:
        return self.net(condition["picture"])

    def join(self, prepared: list[Tensor], given: dict[str, Any]) -> dict[str, Any]:
        dtype = given["sample"].dtype
        maps = [(each if self.factor == 1.0 else each * self.factor).to(dtype, copy=True) for each in prepared]
        key = "down_intrablock_additional_residuals"
        return {key: add_residuals(given, key, maps)}


@dataclass(frozen=True, kw_only=True)
class T2IAdapter(ControlMethod):
    """T2I-Adapter: a small network turns the condition into one feature map for each level of the UNet's encoder.

    Mou et al., "T2I-Adapter: Learning Adapters to Dig Out More Controllable Ability for Text-to-Image Diffusion Models",
    AAAI 2024: F_enc^i ← F_enc^i + s · F_c^i. Pixels are folded into channels, then residual blocks and halvings follow.
    It does not read the time, so sampling runs it once. 77,369,280 parameters on SD 1.5, 79,028,160 on SDXL. It acts from
    the first step on, so the model is not the base at step 0.

    Args:
        blocks_each: residual blocks a level.
        channels: of the condition. shrink: as of controlnet.
    """

    blocks_each: Count = 2
    channels: Count = 3
    shrink: Count | None = None

    identity: ClassVar[bool] = False
    file: ClassVar[str] = "a folder for T2IAdapter.from_pretrained"
    write = staticmethod(write_model)
    not_mergeable: ClassVar[str | None] = "it reads a condition; `export --format control` writes a T2IAdapter."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(shrink=1),)

    def install(self, plan: Plan) -> None:
        import diffusers

        options, config = plan.options_at("conv_in"), cast("Any", plan.model.config)
        widths = list(config.block_out_channels)
        plain_first = "CrossAttn" not in config.down_block_types[0]
        if plain_first and len(widths) == 3:
            widths.append(widths[-1])  # SDXL: the fourth map is added in the middle
        with torch.device(options["device"]):
            net = diffusers.T2IAdapter(
                self.channels, widths, self.blocks_each, (self.shrink or SHRINK) * (2 if plain_first else 1),
                "full_adapter_xl" if plain_first else "full_adapter",
            )  # fmt: skip
        root = Maps(nn.Module.to(net, options["dtype"]))  # diffusers' own `to` warns
        root.size = (self.channels, self.shrink or SHRINK)
        plan.join("", "branch", root)
