from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.prompts import uniform_prompts
from peft_core.parts.tokens.drawn import Drawn, Mean, start_from_patches
from peft_core.values import Count, Rate, Share, Widths


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Visual prompt tuning: learnt tokens P (tokens, D) stand behind the class token: x = [cls, P, patches].

    Jia et al., "Visual Prompt Tuning", ECCV 2022. Shallow: inserted before the first block and carried to the last.
    Deep: new ones before every block, what became of the last block's is dropped. P ~ U(−v, v), v = √(6/(3·p² + D)) for
    patches of p pixels; the frozen model's dropout and drop path are off: KMnP/vpt. Prompts take part in attention, so the
    model is not identical at step 0. 10 tokens: 7,680 parameters on ViT-B/16 shallow, 92,160 deep.

    `project`: P (tokens, p) through one linear p -> D for all blocks, Kaiming-normal by its outputs; v is then of p (KMnP/vpt).
    `fourier`: the first ⌊share·tokens⌋ are given as the real part of their Fourier transform over tokens and width, behind the
    dropout: Zeng et al., "Visual Fourier Prompt Tuning", NeurIPS 2024, whose share is 0.5 by default (runtsang/VFPT, 1b3d984).

    Args:
        tokens: one number, or (deep) one a block where 0 means absent.
        deep: prompts at every block.
        dropout: on the prompts, a mask a sample.
        pool_prompts: where the model averages its tokens (MAE), average the last block's prompts too. KMnP/vpt does so for
            MAE ("original"); off is its `img_pool`, the mean of the patches.
        project: p, the prompts' own width; D where None.
        fourier: share of the prompts that are transformed.
        init: `random`, or `patches`: the mean over the training pictures of what stands at each patch before the prompts' block,
            without prompts, pooled adaptively to as many rows; `lifecycle.prepare` takes it. Wang et al., "Revisiting the Power
            of Prompt for Visual Tuning", ICML 2024, which also offers k-means and random choice.
    """

    tokens: Widths = 10
    deep: bool = False
    dropout: Rate = 0.0
    pool_prompts: bool = False
    project: Count | None = None
    fourier: Share = 0.0
    init: Literal["random", "patches"] = "random"
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    silences_dropout: ClassVar[bool] = True
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        more = cls(tokens=3, deep=True, project=5, fourier=0.7)
        return cls(tokens=2), cls(tokens=2, deep=True, init="patches"), cls(tokens=2, tower="image"), more

    def install(self, plan: Plan) -> None:
        if not self.deep and not isinstance(self.tokens, int):
            raise PeftError("vpt: a list of token counts, one a block, needs deep=True.")
        if self.init == "patches" and (self.project is not None or self.fourier):
            raise PeftError(
                "vpt: patches as a start are neither projected nor transformed: leave project and fourier out."
            )
        # 1,000 is no limit of the method, but more prompts than that is a slip of the keyboard
        blocks = list(plan.chosen_blocks(self.tokens, 1000))
        for tower in dict.fromkeys(tower for tower, *_ in blocks):
            here = [(path, count) for place, _, path, count in blocks if place == tower]
            if self.pool_prompts and plan.token_stream(tower).pooled is None:
                raise PeftError("vpt: pool_prompts is for models that average their tokens, and this one does not.")
            if self.deep:
                for path, count in here:
                    self._add(plan, tower, [path], count)
            else:
                self._add(plan, tower, dict(plan.runs())[tower], here[0][1])

    def _add(self, plan: Plan, tower: str | None, blocks: Sequence[str], count: int) -> None:
        stream, options = plan.token_stream(tower), plan.options_at(blocks[0])
        tokens: Any = uniform_prompts(count, stream, options, self.project)
        pool = self.pool_prompts and blocks[-1] == plan.anatomy.blocks[tower][-1]
        if self.init == "patches":
            tokens = Drawn(tokens, stream.prefix)
        if self.project is None and not self.fourier:
            plan.add_tokens(blocks, tokens, stream, self.dropout, pool, count)
            return
        projection = None
        if self.project is not None:
            make = partial(_projection, self.project, stream.width, options)
            projection = plan.shared(f"projection_{tower}" if tower else "projection", make)
        made = Made(tokens, projection, int(count * self.fourier), self.dropout)
        plan.add_tokens(blocks, made, stream, pool=pool, count=count)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.init == "patches")

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        start_from_patches(model, self, losses, Mean)


def _projection(dim: int, width: int, options: dict[str, Any]) -> nn.Linear:
    layer = nn.Linear(dim, width, **options)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer


class Made(nn.Module):
    """Prompts projected, dropped out, and the first of them transformed: B P D, for what the block receives."""

    def __init__(self, values: nn.Parameter, projection: Reference | None, transformed: int, dropout: float) -> None:
        super().__init__()
        self.values, self.projection, self.transformed = values, projection, transformed
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        prompts = self.values if self.projection is None else self.projection()(self.values)
        prompts = self.dropout(prompts.expand(x.shape[0], -1, -1))
        if not self.transformed:
            return prompts
        spectrum = torch.fft.fft2(prompts[:, : self.transformed].to(self.values.dtype)).real
        return torch.cat((spectrum.to(prompts.dtype), prompts[:, self.transformed :]), 1)
