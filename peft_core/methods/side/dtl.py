import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.calls import hand_on, handed, state
from peft_core.grafts.graft import Graft, match
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.grid import over_patches
from peft_core.values import Positive, Range, Whole, Widths


@dataclass(frozen=True, kw_only=True)
class DTL(Method):
    """Disentangled transfer learning: h ← h + B_i A_i x_i beside the blocks, x_{i+1} ← block_i(x_i) + θ(h) in the later ones.

    Fu, Zhu, Wu, "DTL: Disentangled Transfer Learning for Visual Recognition", AAAI 2024. h starts at 0 and gathers from what
    every block receives; θ(h) = h · sigmoid(β h) joins behind the blocks from `start` on, so nothing runs backward through those
    before. DTL+ (`kernel`) then passes θ(h)'s patches through one depthwise convolution for all blocks, without bias; other
    tokens pass it by. A (r, D) is Kaiming-uniform (a = √5), B (D, r) zero: identity at step 0. r = 2, β = 100, the later half of
    the blocks: heekhero/DTL (bf6c51e), which classifies the mean of the patches' tokens and trains at batch 32, weight decay
    0.05, learning rates from 1e-4 to 1e-2, drop path from 0 to 0.2 and kernels 3, 4 or 5 by task: recipe vtab_dtl.
    36,864 parameters on ViT-B/16, 43,776 with `kernel` 3.

    Args:
        rank: r, one number, or one a block where 0 means absent.
        start: the first block behind which h joins; the middle one where None.
        beta: β.
        kernel: size of DTL+'s convolution; 0: none.
    """

    rank: Widths = 2
    start: Whole | None = None
    beta: Positive = 100.0
    kernel: Annotated[int, Range(0, 15)] = 0
    needs: ClassVar[tuple[str, ...]] = ("stream",)
    not_mergeable: ClassVar[str | None] = "what a block adds depends on all blocks before it, not on its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 36_864), ({"kernel": 3}, 43_776))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(beta=2.0), cls(rank=3, start=0, tower="image")

    def install(self, plan: Plan) -> None:
        for tower, paths in plan.towers():
            stream, start = plan.stream(tower), len(paths) // 2 if self.start is None else self.start
            blocks = list(plan.chosen_blocks(self.rank, stream.width, tower))
            if not any(index >= start for _, index, *_ in blocks):
                raise PeftError(
                    f"dtl joins nowhere: no chosen block stands behind block {start}, where `start` has it."
                )
            fuse = None
            if self.kernel:
                if stream.grid is None:
                    raise PeftError(f"dtl convolves over patches, and this {plan.anatomy.family} has no grid of them.")
                make = partial(_depthwise, stream.width, self.kernel, plan.options_at(paths[0]))
                fuse = plan.shared(f"fuse_{tower}" if tower else "fuse", make)
            before: str | None = None
            for _, index, path, rank in blocks:
                adds = (self.beta, fuse, stream.grid) if index >= start else None
                graft = Gather(stream.width, rank, before, adds, plan.options_at(path))
                graft.arg, graft.output = stream.arg, stream.output
                plan.join(path, "gather", graft)
                before = path


class Gather(Graft):
    """h ← h + B A x for what a block receives, and y ← y + factor · fuse(h · sigmoid(β h)) for what it gives.

    Args:
        comes: the block before, which hands h on; None: h is 0.
        adds: β, the convolution and the grid where h joins; None where it only gathers.
    """

    alone = False
    order = -2  # tokens are not in yet, and out again

    def __init__(self, dim: int, rank: int, comes: str | None,
                 adds: tuple[float, Reference | None, tuple[int, int] | None] | None, options: dict[str, Any]):  # fmt: skip
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, dim, **options))
        self.B = nn.Parameter(torch.zeros(dim, rank, **options))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.comes, self.key, self.adds = comes, "", adds

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{path}/{slot}"
        self.comes = None if self.comes is None else f"{adaptation}/{self.comes}/{slot}"

    def before(self, x: Tensor) -> Tensor:
        h = F.linear(F.linear(match(x, self.A), self.A), self.B)
        if self.comes is not None:
            earlier = handed(x, self.comes)
            if earlier is None:
                raise PeftError(
                    "dtl needs the blocks before in one forward: run the whole model, and checkpoint with use_reentrant=False."
                )
            h = earlier + h
        state()[self.key, "h"] = h
        return x

    def after(self, y: Tensor) -> Tensor:
        h = state().pop((self.key, "h"))
        joined = y if self.adds is None else y + (self._joins(h, *self.adds) * self.factor).to(y.dtype)
        hand_on(joined, self.key, h, y)
        return joined

    @staticmethod
    def _joins(h: Tensor, beta: float, fuse: Reference | None, grid: tuple[int, int] | None) -> Tensor:
        h = h * torch.sigmoid(beta * h)
        if fuse is None or grid is None:
            return h
        weight = fuse()

        def convolve(pictures: Tensor) -> Tensor:
            return F.conv2d(pictures, weight.to(pictures.dtype), padding="same", groups=len(weight))

        return over_patches(h, grid, convolve, lambda alone: alone, "dtl")


def _depthwise(dim: int, kernel: int, options: dict[str, Any]) -> nn.Parameter:
    weight = torch.empty(dim, 1, kernel, kernel, **options)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return nn.Parameter(weight)
