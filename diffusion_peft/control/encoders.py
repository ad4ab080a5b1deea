"""ControlNet's copy of a UNet's encoder: with weights of its own, or with the UNet's very own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError

SHRINK = 8
"""Pixels a latent along each side, of Stable Diffusion's VAEs."""
HINT = (16, 32, 96, 256)
"""Channels of the convolutions that bring a condition to the latents' size, for a VAE that shrinks by 8."""


def hint_channels(shrink: int) -> tuple[int, ...]:
    """One more channel than there are halvings.

    Raises:
        PeftError: a shrink that is no power of two up to 8.
    """
    halvings = shrink.bit_length() - 1
    if shrink < 1 or 2**halvings != shrink or halvings >= len(HINT):
        raise PeftError(f"shrink is the VAE's pixels a latent: 1, 2, 4 or 8, not {shrink}.")
    return HINT[: halvings + 1]


def empty_copy(unet: Any, shrink: int | None, channels: int) -> Any:
    """diffusers' `ControlNetModel` of this UNet's shape, without memory (on the meta device)."""
    from diffusers import ControlNetModel

    with torch.device("meta"):
        return ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=hint_channels(shrink or SHRINK), load_weights_from_unet=False,
            conditioning_channels=channels,
        )  # fmt: skip


def fresh(module: nn.Module, options: dict[str, Any]) -> nn.Module:
    """A module of the meta device with memory and the usual initial values."""
    module.to_empty(device=options["device"])
    module.to(options["dtype"])
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    return module


@torch.no_grad()
def new_parts(net: Any, options: dict[str, Any], zero: bool = True) -> None:
    """Hint encoder and joining convolutions as at step 0: the joins zero, and the hint encoder's last layer."""
    fresh(net.controlnet_cond_embedding, options)
    fresh(net.controlnet_down_blocks, options)
    fresh(net.controlnet_mid_block, options)
    if zero:
        joins = [net.controlnet_cond_embedding.conv_out, *net.controlnet_down_blocks, net.controlnet_mid_block]
        for parameter in (p for module in joins for p in module.parameters()):
            parameter.zero_()


def stock_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in unet.named_parameters() if "peft" not in key.split(".")}


def own_copy(unet: nn.Module, net: Any, options: dict[str, Any]) -> None:
    """The encoder's weights, copied in `options`' precision."""
    known = stock_parameters(unet)
    for module_path, module in list(net.named_modules()):
        for name, parameter in list(module._parameters.items()):
            key = f"{module_path}.{name}" if module_path else name
            if parameter is not None and not key.startswith("controlnet_"):
                module._parameters[name] = nn.Parameter(known[key].detach().to(**options, copy=True))


def shared_copy(unet: nn.Module, net: Any) -> None:
    """The encoder's weights are the UNet's own."""
    known = stock_parameters(unet)
    for module_path, module in list(net.named_modules()):
        for name, parameter in list(module._parameters.items()):
            key = f"{module_path}.{name}" if module_path else name
            if parameter is not None and not key.startswith("controlnet_"):
                module._parameters[name] = known[key]


def run_encoder(net: Any, picture: Tensor, given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
    """The residuals of the UNet's skip connections and of its middle."""
    dtype = given["sample"].dtype
    down, mid = net(
        given["sample"], given["timestep"], given["encoder_hidden_states"], controlnet_cond=picture,
        added_cond_kwargs=given.get("added_cond_kwargs"), return_dict=False,
    )  # fmt: skip
    return [each.to(dtype) for each in down], mid.to(dtype)


def openness(net: Any) -> float:
    """Root mean square of the joining convolutions' weights."""
    joins = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    weights = torch.cat([p.detach().flatten() for module in joins for p in module.parameters()])
    return float(weights.square().mean().sqrt())
