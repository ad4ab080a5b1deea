from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.attention import self_attend
from peft_core.grafts.branch import Branch
from peft_core.grafts.graft import Graft, match
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.values import Count, Positive, Rate, Widths
from vision_peft.video.over_time import add_weighed, check_tower, clips_of, share_of_stream


@dataclass(frozen=True, kw_only=True)
class AIM(Method):
    """AIM: the frozen attention runs over time too, x ← x + T(attn(norm1 x)ₜ), with adapters behind it and in the block.

    Yang et al., "AIM: Adapting Image Models for Efficient Video Action Recognition", ICLR 2023. With x (B·T) N D, a block is
        x ← x + T(attnₜ(norm1 x))                    attnₜ: the block's own attention over the T tokens at each place
        x ← x + y + S(y),  y = attn(norm1 x)
        x ← x + mlp(norm2 x) + s·M(norm2 x)
    T, S, M = Up(GELU(Down ·)), Up and biases zero; with four a block attnₜ reads norm1 x + T₀(norm1 x). Before the blocks
    a temporal embedding (T D, zero) is added, and the last norm trains. attnₜ shares the frozen weights, nothing is copied.
    s = 0.5 on Kinetics, 1 on SSv2, width 192 at D = 768, drop path 0.2: taoyang1122/adapt-image-models.
    ViT-B/16: 10,651,392 parameters of adapters with 3 a block, 14,201,856 with 4; T·768 and 1,536 (last norm) besides.

    Args:
        width: one width h, or one a block where 0 means absent; a quarter of the stream's width D where None.
        per_block: 3, or 4 with an adapter before the attention over time too (SSv2).
        frames: T, as the clips have it.
        scale: s.
        drop_path: share of the frames that go without T's or M's change in training; in the last block, rising from 0.
    """

    width: Widths | None = None
    per_block: Literal[3, 4] = 3
    frames: Count = 8
    scale: Positive = 0.5
    drop_path: Rate = 0.0
    needs: ClassVar[tuple[str, ...]] = ("tokens", "positions")
    suits: ClassVar[tuple[str, ...]] = ("timm ViT", "open_clip tower", "open_clip model")
    not_mergeable: ClassVar[str | None] = (
        "attention over time and bottlenecks with an activation are no change of weights."
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small = cls(width=8, frames=2, per_block=4)
        return small, replace(small, tower="image")

    def install(self, plan: Plan) -> None:
        check_tower(plan)
        width = share_of_stream(plan, self.width, 4)
        for sublayer, size, dim in plan.sublayers(("attn", "mlp"), width):
            if sublayer.post:
                raise PeftError(
                    "aim reads the normed stream before attention, which blocks with norms behind it have not."
                )
            options = plan.options_at(sublayer.norm)
            depth = plan.depth(sublayer.tower)
            rate = self.drop_path * sublayer.block / max(1, depth - 1)

            def adapter(scale: float = 1.0, drop: float = 0.0, dim=dim, size=size, options=options) -> Bottleneck:
                return Bottleneck(dim, size, activation="gelu", scale=scale, drop_path=drop, options=options)

            if sublayer.kind == "mlp":
                plan.add_branch(sublayer, Branch(adapter(self.scale, rate), read=True), read=sublayer.into[0])
                continue
            norm, attention = plan.model.get_submodule(sublayer.norm), plan.model.get_submodule(sublayer.body)
            before = adapter() if self.per_block == 4 else None
            step = AttendOverTime(norm, attention, self.frames, before, adapter(drop=rate))
            plan.join(plan.anatomy.blocks[sublayer.tower][sublayer.block], "over_time", step)
            plan.add_behind(sublayer, adapter())
        for tower in plan.anatomy.blocks:
            if self.tower in (None, tower):
                self._outside_blocks(plan, tower)

    def _outside_blocks(self, plan: Plan, tower: str | None) -> None:
        """The temporal embedding, before the norm that the first block may stand behind, and the last norm."""
        stream, block = plan.token_stream(tower), plan.anatomy.blocks[tower][0]
        embedding = TemporalEmbedding(self.frames, stream.width, plan.options_at(block))
        plan.join(stream.first_norm or block, "temporal_embedding", embedding)
        norms = [
            p.module
            for p in plan.anatomy.places
            if p.role == "norm" and p.tower == tower and p.module != stream.first_norm
        ]
        if norms:
            plan.train(norms[-1], *(name for name, _ in plan.model.get_submodule(norms[-1]).named_parameters()))


class AttendOverTime(Graft):
    """x ← x + T(attn(a)) for x (B·T) N D, a = norm x (+ T₀(norm x)), where attn runs along T."""

    norm: nn.Module
    attention: nn.Module

    def __init__(
        self, norm: nn.Module, attention: nn.Module, frames: int, before: nn.Module | None, adapter: nn.Module
    ) -> None:
        super().__init__()
        self.__dict__.update(norm=norm, attention=attention)  # the block's own: no second place among the submodules
        self.frames = frames
        self.into, self.adapter = before, adapter

    def before(self, x: Tensor) -> Tensor:
        inner = self.norm.forward(x)
        if self.into is not None:
            inner = inner + self.into(inner).to(inner.dtype)
        clips = clips_of(inner, self.frames)  # B T N D
        batch, frames, tokens, _ = clips.shape
        over_time = self_attend(self.attention, clips.transpose(1, 2).flatten(0, 1))  # B·N T D
        change = over_time.unflatten(0, (batch, tokens)).transpose(1, 2).flatten(0, 1)
        return add_weighed(x, self.adapter(change), self.factor)


class TemporalEmbedding(Graft):
    """x ← x + E for x (B·T) N D: row t of E (T D) on every token of frame t; the first thing that is done to x."""

    order: ClassVar[int] = -2

    def __init__(self, frames: int, dim: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.frames = frames
        self.embedding = nn.Parameter(torch.zeros(frames, dim, **options))

    def before(self, x: Tensor) -> Tensor:
        clips = clips_of(match(x, self.embedding), self.frames)
        change = self.embedding[:, None].expand_as(clips).flatten(0, 1)
        return add_weighed(x, change, self.factor)
