import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.around import Around
from peft_core.grafts.graft import argument, match, part_of, put_argument, put_output
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck
from peft_core.values import Count, Positive, Range, Rate


@dataclass(frozen=True, kw_only=True)
class CoDA(Method):
    """Conditional adapter: all tokens pass an adapter, the frozen block runs on the k of the highest score alone,
    y = x + Up(act(Down x)) + λ ⊙ (block(x) − x) with λ = 0 for all others.

    Lei et al., "Conditional Adapters: Parameter-efficient Transfer Learning with Fast Inference", NeurIPS 2023. s = x w is a
    token's score and λ its soft top-k, the maximum of λ·s + ε H(λ) over Σ λ = k, 0 ≤ λ ≤ 1, found by 20 rounds of coordinate
    descent while ε falls from 4 by 0.7 a round; of λ the k largest count. Chosen tokens attend to each other. Class token and
    registers are always chosen, with λ = 1, and not counted in k = ⌈patches/reduction⌉; where a class token alone is read, the
    last block sees all, as nothing would teach it whom to choose. Up is zero, Down Kaiming-uniform, w N(0, 1/D). Not the frozen
    model at step 0, as most tokens pass blocks by: its authors train it on a large set before the task (their light phase), and
    so it wants more of them than other adapters. ε (0.02 to 1 there, by task), reductions of 3 to 5 and the descent are the
    paper's as lucidrains/CoLT5-attention (f2a8da0) has them, not an official code; the adapter's form and width, and the start
    of w, are built from the idea. 1,098,944 parameters on ViT-B/16.

    Args:
        reduction: of the number of patches that a block sees.
        bottleneck: the adapter's width.
        epsilon: the least ε.
        rounds: of the descent.
    """

    reduction: Annotated[float, Range(1)] = 3.0
    bottleneck: Count = 64
    activation: str = "gelu"
    dropout: Rate = 0.0
    epsilon: Positive = 0.03
    rounds: Count = 20
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream", "tokens", "positions")
    not_mergeable: ClassVar[str | None] = "which tokens a block sees depends on the picture."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_098_944),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(bottleneck=4), cls(bottleneck=4, reduction=2.5, epsilon=0.5, blocks=(0,), tower="image")

    def install(self, plan: Plan) -> None:
        for tower, paths in plan.towers():
            stream = plan.token_stream(tower)
            if stream.rotary:
                raise PeftError(
                    f"coda leaves tokens out of a block, and this {plan.anatomy.family}'s attention turns them "
                    "by their places in the whole sequence."
                )
            read = len(paths) if stream.prefix == 0 or stream.pooled is not None else len(paths) - 1
            blocks = [path for _, index, path, _ in plan.chosen_blocks(1, 1, tower) if index < read]
            if not blocks:
                raise PeftError(
                    f"coda leaves the last block as it is, whose patches nobody reads: choose blocks before block {read}."
                )
            for path in blocks:
                options = plan.options_at(path)
                adapter = Bottleneck(
                    stream.width, self.bottleneck, activation=self.activation, dropout=self.dropout, options=options
                )
                graft = Chosen(adapter, stream.width, stream.prefix, self, options)
                graft.arg, graft.output = stream.arg, stream.output
                plan.join(path, "chosen", graft)


class Chosen(Around):
    """The block's forward on the prefix and on k of the other tokens."""

    scalable = False  # type: ignore[misc]

    def __init__(self, adapter: nn.Module, dim: int, prefix: int, method: CoDA, options: dict[str, Any]) -> None:
        super().__init__()
        self.adapter, self.prefix = adapter, prefix
        self.router = nn.Parameter(torch.randn(dim, **options) / math.sqrt(dim))
        self.reduction, self.epsilon, self.rounds = method.reduction, method.epsilon, method.rounds

    def around(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        x = argument(module, args, kwargs, self.arg)
        front, patches = x[:, : self.prefix], x[:, self.prefix :]
        count = math.ceil(patches.shape[1] / self.reduction)
        scores = match(patches, self.router) @ self.router
        soft = (
            soft_top_k(scores, count, self.epsilon, self.rounds)
            if count < patches.shape[1]
            else torch.ones_like(scores)
        )
        weight, where = soft.topk(count, dim=-1)
        places = where.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        seen = torch.cat((front, patches.gather(1, places)), 1)
        args, kwargs = put_argument(module, args, kwargs, self.arg, seen)
        output = forward(*args, **kwargs)
        change = part_of(output, self.output) - seen
        y = x + self.adapter(x).to(x.dtype)
        heavy = weight.unsqueeze(-1).to(x.dtype) * change[:, self.prefix :]
        y = torch.cat(
            (y[:, : self.prefix] + change[:, : self.prefix], y[:, self.prefix :].scatter_add(1, places, heavy)), 1
        )
        return put_output(output, self.output, y)


def soft_top_k(scores: Tensor, count: int, epsilon: float, rounds: int) -> Tensor:
    """λ (… N) with 0 ≤ λ ≤ 1 and Σ λ = count, close to 1 for the largest scores."""
    scores = scores.float() if scores.element_size() < 4 else scores
    a, b, now = torch.zeros_like(scores[..., :1]), -scores, max(4.0, epsilon)
    for _ in range(rounds):
        a = now * (math.log(count) - ((scores + b) / now).logsumexp(-1, keepdim=True))
        b = -F.relu(scores + a)
        now = max(now * 0.7, epsilon)
    return ((scores + a + b) / now).exp()
