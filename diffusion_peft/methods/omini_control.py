from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_peft.base.families import kind_of
from diffusion_peft.base.families.flux import grid_of, packed
from diffusion_peft.control.branch import Named
from diffusion_peft.control.method import ControlMethod
from diffusion_peft.control.transformers import Pieces, check_pieces
from diffusion_peft.files.layers import Layer
from peft_core.errors import PeftError
from peft_core.grafts.around import Around
from peft_core.grafts.calls import hand_on, handed, state
from peft_core.grafts.graft import argument, match
from peft_core.method import Method, Plan
from peft_core.values import Count, Positive

_DOUBLE = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
_SINGLE = ("norm.linear", "proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v")


class Joined(Pieces):
    """The condition's pieces go behind the picture's, with places of their own."""

    lengthens: ClassVar[bool] = True

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.beside = beside

    def join(self, prepared: dict[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
        latents, x = prepared["latents"], given["hidden_states"]
        places = grid_of(latents).to(given["img_ids"].dtype)
        if self.beside:
            places[:, 2] -= latents.shape[-1] // 2
        pieces = packed(latents).to(x.dtype)
        state()[self.key, "count"] = pieces.shape[1]
        return {"hidden_states": torch.cat([x, pieces], 1), "img_ids": torch.cat([given["img_ids"], places])}


class Clean(Named):
    """At the embedding of time: what the condition is told, that it is no noise, and is guided by 1."""

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if count := state().get((self.key, "count")):
            time, *guidance, words = args
            told = [torch.full_like(each, 1000.0) for each in guidance]
            seen = module.forward(torch.zeros_like(time), *told, words)
            state()[f"{self.key}/told"] = seen[:, None].expand(-1, count, -1)
        return output


class Ends(Named):
    """The transformer says nothing of the condition's pieces."""

    def after(self, y: Tensor) -> Tensor:
        count = state().get((self.key, "count"))
        return y[:, :-count] if count else y


class OnCondition(Named):
    """y ← y + s·B A x at the last pieces, the condition's, and on what it is told."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, linear.in_features, **options) / rank)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, **options))
        self.scale = scale

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x, count = args[0], state().get((self.key, "count"))
        if x.dim() == 2:
            return output + self.change(x).to(output.dtype) if state().get((self.key, "telling")) else output
        if not count:
            return output
        change = self.change(x[:, -count:]).to(output.dtype)
        return torch.cat([output[:, :-count], output[:, -count:] + change], 1)

    def change(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(match(x, self.A), self.A), self.B * (self.scale * self.factor))


class Block(Named, Around):
    """A block whose last pieces are the condition's, which are modulated by what the condition is told."""

    def around(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        names = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb")
        x, text, time, places = (argument(module, args, kwargs, name) for name in names)
        told = handed(x, f"{self.key}/told")
        if told is None:
            return forward(*args, **kwargs)
        hand_on(x, f"{self.key}/told", told)  # where the block runs again
        here = state()
        before = here.get((self.key, "count"))
        here[self.key, "count"] = told.shape[1]
        try:
            text, y = self.run(module, x, text, (time, told[:, 0]), places)
        finally:
            here[self.key, "count"] = before
        if y.dtype == torch.float16:
            text, y = text.clip(-65504, 65504), y.clip(-65504, 65504)
        hand_on(y, f"{self.key}/told", told)
        return text, y

    def run(
        self, block: Any, x: Tensor, text: Tensor, told: tuple[Tensor, Tensor], places: Any
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define run(block, x, text, told, places)")

    def modulated(self, norm: nn.Module, x: Tensor, told: tuple[Tensor, Tensor]) -> list[Tensor]:
        """What an adaptive norm gives, for all pieces: B N D each."""
        count = state()[self.key, "count"]
        parts = x[:, :-count], x[:, -count:]
        found = [norm(parts[0], emb=told[0])]
        state()[self.key, "telling"] = True
        try:
            found.append(norm(parts[1], emb=told[1]))
        finally:
            state()[self.key, "telling"] = False
        first, *rest = zip(*found, strict=True)
        sizes = [part.shape[1] for part in parts]
        spread = [
            torch.cat([e[:, None].expand(-1, n, -1) for e, n in zip(each, sizes, strict=True)], 1) for each in rest
        ]
        return [torch.cat(first, 1), *spread]


class DoubleBlock(Block):
    def run(
        self, block: Any, x: Tensor, text: Tensor, told: tuple[Tensor, Tensor], places: Any
    ) -> tuple[Tensor, Tensor]:
        h, gate, shift, scale, gate_mlp = self.modulated(block.norm1, x, told)
        w, w_gate, w_shift, w_scale, w_gate_mlp = block.norm1_context(text, emb=told[0])
        attended, heard = block.attn(hidden_states=h, encoder_hidden_states=w, image_rotary_emb=places)
        x = x + gate * attended
        x = x + gate_mlp * block.ff(block.norm2(x) * (1 + scale) + shift)
        text = text + w_gate[:, None] * heard
        said = block.ff_context(block.norm2_context(text) * (1 + w_scale[:, None]) + w_shift[:, None])
        return text + w_gate_mlp[:, None] * said, x


class SingleBlock(Block):
    def run(
        self, block: Any, x: Tensor, text: Tensor, told: tuple[Tensor, Tensor], places: Any
    ) -> tuple[Tensor, Tensor]:
        whole = torch.cat([text, x], 1)
        h, gate = self.modulated(block.norm, whole, told)
        inner = block.act_mlp(block.proj_mlp(h))
        attended = block.attn(hidden_states=h, image_rotary_emb=places)
        y = whole + gate * block.proj_out(torch.cat([attended, inner], 2))
        return y[:, : text.shape[1]], y[:, text.shape[1] :]


def write_lora(unet: nn.Module, adaptation: Any, control: Any, out: Path, dtype: torch.dtype | None) -> None:
    from diffusion_peft.formats import export_layers
    from peft_core.attach import grafts_named

    paths = {id(module): path for path, module in unet.named_modules()}
    layers = {
        paths[id(module)]: Layer("lora", {"A": graft.A.detach().cpu(), "B": graft.B.detach().cpu()}, graft.scale)
        for module, _, graft in grafts_named(unet, adaptation.name)
        if isinstance(graft, OnCondition)
    }
    export_layers({"transformer": unet}, {"transformer": layers}, out, "diffusers_lora", dtype)


@dataclass(frozen=True, kw_only=True)
class OminiControl(ControlMethod):
    """OminiControl: the condition as further pieces in Flux's own sequence, with LoRA on these alone.

    Tan et al., "OminiControl: Minimal and Universal Control for Diffusion Transformer", ICCV 2025: [text; X; C] attend to each
    other in every block; the VAE's latents C of the condition are modulated as pictures without noise (t = 0, guidance 1), and
    y = W c + s·B A c for them, in the embedding of pieces, q, k, v, the projections, the modulations and what leaves the
    feed-forward. A condition that lies over the picture has its places, one `beside` it those to its left. A is N(0, 1/rank²), B
    zero, rank 4 and s = 1, as in the authors' config (they take 16 for subjects): 14,487,808 parameters on Flux.1. As the pieces
    are there from the first step on, the model is not the base at step 0; without a condition it is. The scale weighs the LoRA,
    at 0 the condition is off. Conditions have the picture's size here, and are the mean of the VAE's posterior.

    Args:
        rank: r. alpha: s = alpha / rank; 1 where it is None.
        placed: over or beside.
    """

    rank: Count = 4
    alpha: Positive | None = None
    placed: Literal["over", "beside"] = "over"

    identity: ClassVar[bool] = False
    suits: ClassVar[tuple[str, ...]] = ("diffusers DiT",)
    transformers: ClassVar[tuple[str, ...]] = ("flux",)
    unets: ClassVar[bool] = False
    file: ClassVar[str] = "a LoRA file by diffusers' names, for the authors' pipeline: it acts on the condition alone"
    write = staticmethod(write_lora)
    not_mergeable: ClassVar[str | None] = "it acts on the pieces of a condition alone."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=2, alpha=3.0), cls(rank=2, placed="beside"))

    def install(self, plan: Plan) -> None:
        model: Any = plan.model
        if kind_of(model) not in self.transformers:
            raise PeftError(f"omini_control joins pieces to Flux.1's, and this is a {type(model).__name__}.")
        check_pieces(model, "omini_control", lengthens=True)
        options, scale = plan.options_at("proj_out"), 1.0 if self.alpha is None else self.alpha / self.rank
        plan.join("", "branch", Joined(self.placed == "beside"))
        plan.join("time_text_embed", "clean", Clean())
        plan.join("proj_out", "ends", Ends())
        blocks = {f"transformer_blocks.{i}": (DoubleBlock, _DOUBLE) for i in range(len(model.transformer_blocks))}
        blocks |= {f"single_transformer_blocks.{i}": (SingleBlock, _SINGLE)
                   for i in range(len(model.single_transformer_blocks))}  # fmt: skip
        paths = ["x_embedder"]
        for block, (kind, inner) in blocks.items():
            plan.join(block, "modulated", kind())
            paths += [f"{block}.{path}" for path in inner]
        for path in paths:
            plan.join(path, "low_rank", OnCondition(model.get_submodule(path), self.rank, scale, options))
