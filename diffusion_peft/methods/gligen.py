from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from diffusion_peft.control.branch import Control, Handed, Named, handed
from diffusion_peft.control.files import write_grounding
from diffusion_peft.control.method import ControlMethod
from peft_core.grafts.calls import state
from peft_core.grafts.graft import match
from peft_core.method import Plan


class Grounding(Control):
    """Boxes with phrases to tokens, which the gated attention of all layers reads."""

    wants = ("boxes", "phrases", "present")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def guided(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        both = super().guided(condition)
        half = len(condition["present"])
        both["present"] = torch.cat([torch.zeros_like(both["present"][:half]), both["present"][half:]])
        return both

    def prepared(self, condition: dict[str, Tensor]) -> Tensor:
        return self.net(condition["boxes"], condition["present"], positive_embeddings=condition["phrases"])

    def join(self, prepared: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        return self.hand_down(given, prepared)

    def effect(self) -> float:
        gates = [gate for f in self.partners for gate in (f.net.alpha_attn, f.net.alpha_dense)]
        return float(torch.stack([gate.detach().tanh().abs() for gate in gates]).max())


class Fuser(Named):
    """Between self attention and cross attention: x ← x + fused(x) − x, for the norm and (see `Carry`) for the stream."""

    net: Any
    """GatedSelfAttentionDense."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def before(self, x: Tensor) -> Tensor:
        tokens = handed(self.key)
        if tokens is None:
            return x
        own = match(x, self.net.alpha_attn)
        change = (self.net(own, match(tokens, self.net.alpha_attn)) - own).to(x.dtype)
        change = change if self.factor == 1.0 else change * self.factor
        state()[self.key, "change"] = change
        return x + change


class Carry(Named):
    """At cross attention: its output takes the change along into the stream."""

    def after(self, y: Tensor) -> Tensor:
        change = state().pop((self.key, "change"), None)
        return y if change is None else y + change


@dataclass(frozen=True, kw_only=True)
class GLIGEN(ControlMethod):
    """GLIGEN: boxes with phrases, through gated self attention in every transformer block.

    Li et al., "GLIGEN: Open-Set Grounded Text-to-Image Generation", CVPR 2023: a box and its phrase become a token
    h = MLP([text feature; Fourier(box)]), and between self and cross attention
    x ← x + β tanh(α₁) SelfAttn(LN [x; W h])_x, x ← x + β tanh(α₂) FF(LN x), with α₁ = α₂ = 0 at the start. Boxes are
    left, top, right, bottom in [0, 1], 30 at the most. In sampling β is 1 for the first part of the steps (0.3
    suggested), then 0. 209,102,240 parameters on SD 1.5.
    """

    takes: ClassVar[Literal["picture", "features", "boxes"]] = "boxes"
    file: ClassVar[str] = "unet/ for StableDiffusionGLIGENPipeline, and gligen.safetensors without the base's weights"
    write = staticmethod(write_grounding)
    not_mergeable: ClassVar[str | None] = (
        "it reads boxes; `export --format control` writes a UNet for GLIGEN's pipeline."
    )

    def install(self, plan: Plan) -> None:
        from diffusers.models.attention import GatedSelfAttentionDense
        from diffusers.models.embeddings import GLIGENTextBoundingboxProjection

        options, config = plan.options_at("conv_in"), cast("Any", plan.model.config)
        text = int(config.cross_attention_dim)
        with torch.device(options["device"]):
            root = Grounding(GLIGENTextBoundingboxProjection(text, text).to(options["dtype"]))
        plan.join("", "branch", root)
        for sublayer in plan.anatomy.sublayers:
            if sublayer.kind != "cross_attn":
                continue
            attention: Any = plan.model.get_submodule(sublayer.body)
            width, heads = attention.query_dim, attention.heads
            with torch.device(options["device"]):
                net = GatedSelfAttentionDense(width, text, heads, attention.inner_dim // heads)
            fuser = Fuser(net.to(options["dtype"]))
            root.partners.append(fuser)
            plan.join(sublayer.layer or sublayer.norm.rpartition(".")[0], "handed", Handed())
            plan.join(sublayer.norm, "fuser", fuser)
            plan.join(sublayer.body, "carry", Carry())
