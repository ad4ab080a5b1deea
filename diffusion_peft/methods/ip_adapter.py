from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import kind_of
from diffusion_peft.control.branch import Control, Handed, Named, handed
from diffusion_peft.control.files import write_image_prompt
from diffusion_peft.control.flux_pictures import Answered, Asked, PictureOfFlux
from diffusion_peft.control.method import ControlMethod
from peft_core.anatomies import Anatomy
from peft_core.errors import PeftError
from peft_core.grafts.attention import KeysValues
from peft_core.grafts.graft import match
from peft_core.method import Method, Plan
from peft_core.values import Count

DIM_HEAD = 64
"""Of the resampler's attention; loaders tell its number of heads by it."""


class PictureTokens(Control):
    """Image features to tokens, for the attention of all layers. `features` are B N D, or B D where they are pooled."""

    wants = ("features", "null")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def guided(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        both = torch.cat([condition["null"], condition["features"]])
        return {"features": both, "null": torch.cat([condition["null"]] * 2)}

    def prepared(self, condition: dict[str, Tensor]) -> Tensor:
        return self.net(condition["features"])

    def join(self, prepared: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        return self.hand_down(given, prepared)


class OfTokens(nn.Module):
    """Tokens B P C to keys and values, each B P W."""

    def __init__(self, to_k: nn.Linear, to_v: nn.Linear) -> None:
        super().__init__()
        self.to_k, self.to_v = to_k, to_v

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = match(tokens, self.to_k.weight)
        return self.to_k(tokens), self.to_v(tokens)


class OverImage(Named, KeysValues):
    """s · softmax(Q K_iᵀ / √d) V_i beside the attention over the text, while a picture is at hand."""

    def __init__(self, to_k: nn.Linear, to_v: nn.Linear) -> None:
        super().__init__(OfTokens(to_k, to_v), apart=True)

    def heads(self, x: Tensor, q: Tensor, k: Tensor) -> list[Tensor] | None:
        tokens = handed(self.key)
        return None if tokens is None else super().heads(tokens, q, k)


@dataclass(frozen=True, kw_only=True)
class IPAdapter(ControlMethod):
    """IP-Adapter: a picture as prompt, by keys and values of its own beside those of the text.

    Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", 2023:
    Z = softmax(Q K_tᵀ / √d) V_t + λ softmax(Q K_iᵀ / √d) V_i in every cross attention, K_i and V_i of tokens that are
    projected from a frozen image tower; they start as the text's. The scale is λ, at use too. On SD 1.5 22,319,616
    parameters (4 tokens, 1024-wide features), 49,087,488 (plus, 1280-wide); on SDXL 349,188,096 and 423,748,864.

    On Flux.1 it is XLabs' (x-flux, diffusers' `FluxIPAdapterAttnProcessor`): Q before its places turn it, in the blocks with two
    streams, and the answer is added behind the block; K_i and V_i have biases and start at zero, so the model is the base at step
    0. Its training code is not published; it is trained as on UNets, by the base's own loss. A Flux that is not distilled and is
    drawn with guidance sees the picture in both its passes. 490,874,880 parameters (768-wide features).

    Args:
        width: of the image tower's features: of the pooled one, with `plus` of the patches before the last layer. `fit` takes
            its tower's, elsewhere it is ViT-H's, 1024 and 1280, on Flux ViT-L's, 768.
        tokens: 4 from the pooled feature; the number of queries with `plus`, 16 in the paper.
        plus: a resampler of all patches (four layers of cross attention from learnt queries) in place of one projection.
    """

    width: Count | None = None
    tokens: Count | None = None
    plus: bool = False

    identity: ClassVar[bool] = False
    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet", "diffusers DiT")
    transformers: ClassVar[tuple[str, ...]] = ("flux",)
    renamed: ClassVar[dict[str, str]] = {"to_out.0.peft.{name}.image.": "peft.{name}.keys_values.make."}
    takes: ClassVar[Literal["picture", "features", "boxes"]] = "features"
    file: ClassVar[str] = "ip_adapter.safetensors for load_ip_adapter"
    write = staticmethod(write_image_prompt)
    not_mergeable: ClassVar[str | None] = (
        "it reads a picture; `export --format control` writes a file for load_ip_adapter."
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(width=6), cls(width=6, plus=True)

    def identical(self, anatomy: Anatomy) -> bool:
        return anatomy.family != self.suits[0]

    def install(self, plan: Plan) -> None:
        if (self.width or 1) < 1 or (self.tokens is not None and self.tokens < 1):
            raise PeftError(f"ip_adapter got width {self.width} and tokens {self.tokens}: they must be 1 or more.")
        if plan.anatomy.family != self.suits[0]:
            self.join_flux(plan)
            return
        options, config = plan.options_at("conv_in"), cast("Any", plan.model.config)
        text = int(config.cross_attention_dim)
        with torch.device(options["device"]):
            root = PictureTokens(self.projection(text).to(options["dtype"]))
        plan.join("", "branch", root)
        for sublayer in plan.anatomy.sublayers:
            if sublayer.kind != "cross_attn":
                continue
            attention: Any = plan.model.get_submodule(sublayer.body)
            layer = OverImage(*(copied(part, options) for part in (attention.to_k, attention.to_v)))
            root.partners.append(layer)
            plan.join(sublayer.body, "handed", Handed())
            plan.extend_keys_values(sublayer, layer)

    def join_flux(self, plan: Plan) -> None:
        from diffusers.models.embeddings import ImageProjection

        model: Any = plan.model
        if kind_of(model) not in self.transformers:
            raise PeftError(f"ip_adapter works on UNets and on Flux.1, and this is a {type(model).__name__}.")
        if self.plus:
            raise PeftError("ip_adapter's resampler of patches (plus) is for UNets: leave it out.")
        options, text, width = plan.options_at("proj_out"), model.config.joint_attention_dim, model.inner_dim
        with torch.device(options["device"]):
            root = PictureOfFlux(ImageProjection(self.width or 768, text, self.tokens or 4).to(options["dtype"]))
        plan.join("", "branch", root)
        for number in range(len(model.transformer_blocks)):
            to_k, to_v = (nn.Linear(text, width, **options) for _ in range(2))
            for parameter in (*to_k.parameters(), *to_v.parameters()):
                nn.init.zeros_(parameter)
            layer = Answered(OfTokens(to_k, to_v))
            root.partners.append(layer)
            plan.join(f"transformer_blocks.{number}.attn.norm_q", "asked", Asked())
            plan.join(f"transformer_blocks.{number}", "answered", layer)

    def projection(self, text: int) -> nn.Module:
        from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection

        if not self.plus:
            return ImageProjection(self.width or 1024, text, self.tokens or 4)
        inner = 1280 if text == 2048 else text
        return IPAdapterPlusImageProjection(
            embed_dims=self.width or 1280, output_dims=text, hidden_dims=inner, depth=4, dim_head=DIM_HEAD,
            heads=max(1, inner // DIM_HEAD), num_queries=self.tokens or 16,
        )  # fmt: skip


def copied(linear: nn.Linear, options: dict[str, Any]) -> nn.Linear:
    """A linear of its own with these weights."""
    with torch.device("meta"):
        own = nn.Linear(linear.in_features, linear.out_features, bias=False)
    own.weight = nn.Parameter(linear._parameters["weight"].detach().to(**options, copy=True))  # type: ignore[union-attr]
    return own
