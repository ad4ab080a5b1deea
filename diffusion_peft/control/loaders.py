"""ControlNeXt's files put onto a stock UNet."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from diffusion_peft.control.branch import controls_of
from peft_core import adapt
from peft_core.errors import PeftError


@torch.no_grad()
def load_controlnext(unet: nn.Module, folder: str | Path) -> nn.Module:
    """A stock UNet under the ControlNeXt that `export --format control` wrote; give it a condition with `set_condition`.

    Raises:
        PeftError: the files do not fit the UNet.
    """
    net, increments = (load_file(Path(folder) / f"{name}.safetensors") for name in ("controlnext", "increments"))
    with safe_open(Path(folder) / "controlnext.safetensors", framework="pt") as file:
        shrink = int((file.metadata() or {}).get("shrink", 8))
    channels, width = net["embedding.0.weight"].shape[1], net["embedding.0.weight"].shape[0]
    adapt(unet, "controlnext", targets=(), width=width, channels=channels, shrink=shrink)
    ((_, control),) = controls_of(unet)
    parameters = dict(unet.named_parameters())
    try:
        control.net.load_state_dict(net)  # type: ignore[operator,union-attr]
        for key, value in increments.items():
            parameters[key].add_(value)
    except (RuntimeError, KeyError) as error:
        raise PeftError(f"{folder} is for another UNet ({str(error).splitlines()[0]}).") from error
    return unet.requires_grad_(False).eval()
