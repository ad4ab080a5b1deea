from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import match
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.hypercomplex import kronecker_sum
from peft_core.parts.tokens.added import Added
from peft_core.values import Count, Rate


@dataclass(frozen=True, kw_only=True)
class IDPG(Method):
    """IDPG: before every block a generator makes of the picture's own state what is added to its prompts.

    Wu et al., "IDPG: An Instance-Dependent Prompt Generation Method", NAACL 2022. p_l = W₂ gelu(W₁ s_l + b) + b_l, reshaped to
    (tokens, D); W₁ (m, D), b and W₂ (tokens·D, m) are one for all blocks, b_l each block's own; p_0 comes in behind the class
    token, p_l is added to what stands there. s_l is the class token that block l receives. Dropout 0.1 before W₂; W ~ N(0,
    0.02), b 0, b_l ~ U(−0.5, 0.5): CSerxy/IDPG (691b282, its mode "layerb" with the layer before). With `phm`, W₁ and W₂ are
    sums of Kronecker products, Σ_i A_i ⊗ B_i of that many terms, all and b ~ N(0, 0.05); there 16.

    Differs: s_0 is there the class token behind a whole frozen pass of its own, under dropout; here the mean of the tokens that
    the first block receives, as their GloVe variant takes a text's mean word vector: one pass, and the class token knows
    nothing of the picture yet. Without a class token s_l is the mean of the patches. Adam, decay 0.1, rate 5e-4 of 1e-4 to
    5e-3: there. Not identical at step 0: tokens take part in attention. 119,824 parameters on ViT-B/16, 58,896 with 16 terms.

    Args:
        tokens: how many.
        hidden: m.
        phm: terms of the Kronecker sums; dense matrices where None.
        dropout: on the generator's inner values.
    """

    tokens: Count = 5
    hidden: Count = 16
    phm: Count | None = None
    dropout: Rate = 0.1
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 119_824), ({"phm": 16}, 58_896))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2, hidden=3, dropout=0.0), cls(tokens=2, hidden=4, phm=4, dropout=0.0)

    def install(self, plan: Plan) -> None:
        for tower, run in plan.runs():
            stream, options = plan.token_stream(tower), plan.options_at(run[0])
            sizes, terms = (stream.width, self.hidden, self.tokens * stream.width), self.phm or 1
            if any(size % terms for size in sizes):
                raise PeftError(
                    f"idpg: {terms} Kronecker terms do not divide {sizes[0]}, {sizes[1]} and {sizes[2]} features."
                )
            build = partial(Dense, *sizes, options) if self.phm is None else partial(PHM, *sizes, self.phm, options)
            generator = plan.shared(f"generator_{tower}" if tower else "generator", build)
            for _, _, path, _ in plan.chosen_blocks(1, 1, tower):
                first = path == run[0]
                made = Made(generator, sizes[2], self.dropout, stream.prefix == 0 or first, options)
                if first:
                    plan.add_tokens(run, made, stream, count=self.tokens)
                else:
                    plan.join(path, "generated", Added(made, self.tokens, stream))


class Dense(nn.Module):
    """W₁, b and W₂."""

    def __init__(self, dim: int, hidden: int, out: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden, **options), nn.Linear(hidden, out, bias=False, **options)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.down.bias)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.down.weight, self.down.bias, self.up.weight


class PHM(nn.Module):
    """The same as sums of Kronecker products: A (n, n, n) and B (n, in/n, out/n) for each of the two."""

    A1: Tensor
    B1: Tensor
    A2: Tensor
    B2: Tensor
    bias: Tensor

    def __init__(self, dim: int, hidden: int, out: int, terms: int, options: dict[str, Any]) -> None:
        super().__init__()
        shapes = {"A1": (terms,) * 3, "B1": (terms, dim // terms, hidden // terms), "bias": (hidden,),
                  "A2": (terms,) * 3, "B2": (terms, hidden // terms, out // terms)}  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, **options) * 0.05))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return kronecker_sum(self.A1, self.B1).t(), self.bias, kronecker_sum(self.A2, self.B2).t()


class Made(nn.Module):
    """x B N D -> p_l B P D."""

    def __init__(self, generator: Reference, out: int, dropout: float, mean: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.generator, self.mean, self.dropout = generator, mean, nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.empty(out, **options).uniform_(-0.5, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        state = match(x.mean(1) if self.mean else x[:, 0], self.bias)
        down, b, up = self.generator()()
        inner = self.dropout(F.gelu(F.linear(state, down, b)))
        return F.linear(inner, up, self.bias).unflatten(-1, (-1, x.shape[-1]))
