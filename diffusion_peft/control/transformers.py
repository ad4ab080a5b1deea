"""ControlNet beside a diffusion transformer: diffusers' `SD3ControlNetModel` and `FluxControlNetModel`.

The condition is a picture as the base's VAE gives it; it is added to what the copied blocks read, and what each of them gives
goes through a linear that starts at zero onto the transformer's own blocks, each onto as many of these as there are more of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import kind_of
from diffusion_peft.base.families.flux import packed
from diffusion_peft.control.branch import Condition, Control, add_residuals, controls_of
from peft_core.attach import pick
from peft_core.errors import PeftError
from peft_core.kernels.quantised import dense, packed_of

NEW = ("controlnet_", "pos_embed_input.")
"""What a copy has besides the transformer's own: all of it starts at zero."""


class OfLatents(Control):
    """A control of a transformer."""

    wants: ClassVar[tuple[str, ...]] = ("latents",)
    stream: ClassVar[str] = "hidden_states"

    def precision(self, unet: Any, x: Tensor) -> AbstractContextManager:
        wanted = x.dtype != torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return torch.autocast(x.device.type, x.dtype) if wanted else nullcontext()

    def check(self, x: Tensor, condition: Condition) -> None:
        have, need = tuple(condition["latents"].shape[1:]), tuple(x.shape[1:])
        if have != need:
            raise PeftError(
                f"the condition's latents are {' × '.join(map(str, have))}, the picture's {' × '.join(map(str, need))}: give a "
                "condition of the picture's size."
            )


class Pieces(OfLatents):
    """Of one that reads latents in pieces of 2 × 2."""

    lengthens: ClassVar[bool] = False
    """Whether it joins pieces to the picture's, so that others of this kind no longer know which are the picture's."""

    def check(self, x: Tensor, condition: Condition) -> None:
        h, w = condition["latents"].shape[2:]
        if h % 2 or w % 2 or x.shape[1] != h * w // 4:
            raise PeftError(
                f"the condition's latents are {h} × {w}, and the picture has {x.shape[1]} pieces of 2 × 2: give a condition of "
                "the picture's size."
            )


class Beside(OfLatents):
    """A copy `net` of a transformer's first blocks."""

    net: Any
    depths: dict[str, int]
    """Of the transformer, by the argument that takes the residuals of such blocks."""

    def __init__(self, net: nn.Module, depths: Mapping[str, int]) -> None:
        super().__init__()
        self.net, self.depths = net, dict(depths)

    def join(self, prepared: dict[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
        dtype, found = given["hidden_states"].dtype, {}
        for key, new in self.residuals(prepared["latents"], given).items():
            new = [each.to(dtype) if self.factor == 1.0 else each.to(dtype) * self.factor for each in new]
            found[key] = add_residuals(given, key, [new[self.at(i, key, len(new))] for i in range(self.depths[key])])
        return found

    def residuals(self, latents: Tensor, given: dict[str, Any]) -> dict[str, list[Tensor]]:
        """What the copied blocks give, by the transformer's argument for it."""
        raise NotImplementedError(f"{type(self).__name__} must define residuals(latents, given)")

    def at(self, block: int, key: str, count: int) -> int:
        """Which of `count` residuals a block of the transformer gets."""
        return int(block / (self.depths[key] / count))

    def effect(self) -> float:
        names = ("controlnet_blocks.", "controlnet_single_blocks.")
        weights = [p.detach().flatten() for key, p in self.net.named_parameters() if key.startswith(names)]
        return float(torch.cat(weights).square().mean().sqrt())


class BesideSD3(Beside):
    def residuals(self, latents: Tensor, given: dict[str, Any]) -> dict[str, list[Tensor]]:
        words = {key: given[key] for key in ("encoder_hidden_states", "pooled_projections", "timestep")}
        (found,) = self.net(given["hidden_states"], latents, **words, return_dict=False)
        return {"block_controlnet_hidden_states": found}


class BesideFlux(Pieces, Beside):
    def residuals(self, latents: Tensor, given: dict[str, Any]) -> dict[str, list[Tensor]]:
        keys = ("encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
        words = {key: given[key] for key in keys}
        if self.net.config.guidance_embeds:
            words["guidance"] = given.get("guidance")
        double, single = self.net(given["hidden_states"], packed(latents), **words, return_dict=False)
        return {"controlnet_block_samples": double, "controlnet_single_block_samples": single}

    def at(self, block: int, key: str, count: int) -> int:
        return block // math.ceil(self.depths[key] / count)


def check_pieces(model: nn.Module, method: str, lengthens: bool) -> None:
    """Raises PeftError: of the controls by pieces on this model and a new one, one joins pieces of its own."""
    for name, control in controls_of(model):
        if isinstance(control, Pieces) and (lengthens or control.lengthens):
            (other,) = pick(model, name)
            joins = method if lengthens else other.method.name
            raise PeftError(
                f"{method} cannot stand beside {other.method.name} on one Flux: {joins} joins the condition's pieces to the "
                "picture's, which the other one counts; take one of them at a time."
            )


def beside(model: Any, layers: int | None, single_layers: int | None, options: dict[str, Any]) -> Beside:
    """The branch at step 0, a copy of so many blocks.

    Args:
        layers: of those with a stream for picture and one for words; 12 of SD3, 4 of Flux, as diffusers' scripts have them.
        single_layers: of Flux's others, 4.

    Raises:
        PeftError: another transformer, more blocks than it has.
    """
    import diffusers

    of = kind_of(model)
    if of == "sd3":
        # the last block makes nothing of the words: it is of another shape
        most = len(model.transformer_blocks) - 1
        config = {"num_layers": counted("layers", layers, 12, most), "extra_conditioning_channels": 0,
                  # the words' pooled states and the VAE's shift are what training has, and pipelines ask the config
                  "force_zeros_for_pooled_projection": False}  # fmt: skip
        net = empty(diffusers.SD3ControlNetModel, model, config)
        kind, depths = BesideSD3, {"block_controlnet_hidden_states": most + 1}
    elif of == "flux":
        check_pieces(model, "controlnet", lengthens=False)
        double, single = len(model.transformer_blocks), len(model.single_transformer_blocks)
        config = {"num_layers": counted("layers", layers, 4, double),
                  "num_single_layers": counted("single_layers", single_layers, 4, single)}  # fmt: skip
        net = empty(diffusers.FluxControlNetModel, model, config)
        kind, depths = BesideFlux, {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
    else:
        raise PeftError(
            f"controlnet copies UNets and transformers of Stable Diffusion 3 and Flux.1, and this is a {type(model).__name__}."
        )
    filled(net, model, options)
    return kind(net, depths)


def counted(name: str, asked: int | None, usual: int, most: int) -> int:
    if asked is not None and asked > most:
        raise PeftError(f"controlnet got {name} {asked}, and this transformer has {most} blocks that can be copied so.")
    return min(usual, most) if asked is None else asked


def empty(cls: Any, model: Any, config: dict[str, Any]) -> Any:
    """A network of the transformer's widths on the meta device."""
    known = set(inspect.signature(cls.__init__).parameters)
    with torch.device("meta"):
        return cls(**{key: value for key, value in model.config.items() if key in known} | config)


@torch.no_grad()
def filled(net: nn.Module, model: nn.Module, options: dict[str, Any]) -> None:
    """The transformer's weights, copied; zeros in what is new."""
    for path, module in net.named_modules():
        prefix = f"{path}." if path else ""
        stock: Any = None if f"{prefix}.".startswith(NEW) else model.get_submodule(path)
        for name, own in list(module._parameters.items()):
            if own is None:
                continue
            if stock is None:
                value = torch.zeros(own.shape, **options)
            else:
                packed = packed_of(stock) if name == "weight" else None
                value = stock._parameters[name] if packed is None else dense(packed, options["dtype"])
                value = value.detach().to(**options, copy=True)
            module._parameters[name] = nn.Parameter(value)
        for name, own in list(module._buffers.items()):
            if own is not None and stock is not None:
                module._buffers[name] = stock._buffers[name].to(options["device"], copy=True)
