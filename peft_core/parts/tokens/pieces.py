"""Prompts of which tokens, and pieces of tokens, are masked after a first training, by what the loss says of the masks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.shared import Reference
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method, Plan
from peft_core.parts.selection.first_phase import trained_once
from peft_core.values import Count, Positive, Rate, Whole


class Masks(nn.Module):
    """γ (P) and ζ (P, pieces), which stand for the mask γ_i ζ_ik of an entry d of token i, d in its piece k."""

    tokens: Tensor
    pieces: Tensor
    piece: Tensor

    def __init__(self, count: int, pieces: int, dim: int, strided: bool, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.ones(count, dtype=torch.bool, device=device))
        self.register_buffer("pieces", torch.ones(count, pieces, dtype=torch.bool, device=device))
        entry = torch.arange(dim, device=device)
        self.register_buffer("piece", entry % pieces if strided else entry * pieces // dim, persistent=False)

    def whole(self) -> Tensor:
        """P D."""
        return self.tokens[:, None] & self.pieces[:, self.piece]

    def sums(self, each: Tensor) -> tuple[Tensor, Tensor]:
        """Of a number for each entry, P D: those of the tokens and of their pieces."""
        return each.sum(1), each.new_zeros(self.pieces.shape).index_add_(1, self.piece, each)

    def drop(self, tokens: Tensor, pieces: Tensor, counts: tuple[int, int]) -> None:
        """Masks so many tokens, and pieces of each token, of the lowest scores."""
        self.tokens[tokens.argsort(stable=True)[: counts[0]]] = False
        self.pieces.scatter_(1, pieces.argsort(dim=1, stable=True)[:, : counts[1]], False)


class Masked(nn.Module):
    """Prompts γ ζ ⊙ P, P D, with masks that several of them share."""

    def __init__(self, values: nn.Parameter, masks: Reference) -> None:
        super().__init__()
        self.values, self.masks = values, masks

    def forward(self, x: Tensor) -> Tensor:
        return self.values * self.masks().whole()


@dataclass(frozen=True, kw_only=True)
class Pieced(Method):
    """Prompts that `prepare` prunes: it trains everything a first time, scores the masks at what came of it, masks the shares of
    the lowest scores, and rewinds.

    Args:
        prune_tokens: share of the tokens that is masked, one token staying.
        prune_pieces: share of each token's pieces that is masked, four of them staying.
        pieces: of a token.
        passes: over the losses that `prepare` is given, in the first training.
        first_lr: its learning rate (AdamW, without a schedule or weight decay).
    """

    prune_tokens: Rate = 0.0
    prune_pieces: Rate = 0.0
    pieces: Count = 16
    passes: Whole = 10
    first_lr: Positive = 1e-2
    strided: ClassVar[bool] = False
    """Whether piece k of n is the entries k, k + n, k + 2n …, or each piece stands together."""
    rewinds: ClassVar[bool] = True
    """Whether what trains is put back to its start behind the first training; else what it became stays."""
    singly: ClassVar[bool] = False
    """Whether the score's gradients are those of single samples."""

    def masks(self, plan: Plan, tower: str | None, count: int, width: int, device: torch.device) -> Reference:
        if self.pieces > width:
            raise PeftError(f"{self.name}: {self.pieces} pieces are more than a token's width, {width}.")
        name = f"masks_{tower}" if tower else "masks"
        return plan.shared(name, lambda: Masks(count, self.pieces, width, self.strided, device))

    def score(self, gradient: Tensor) -> Tensor:
        """What a loss's gradient on masks says of them."""
        raise NotImplementedError(f"{type(self).__name__} must define score(gradient)")

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or bool(self.prune_tokens or self.prune_pieces))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        with trained_once(model, self, losses, self.first_lr, self.passes) as before:
            scores = self._scores(model, losses)
            became = [parameter.detach().clone() for parameter, _ in before]
        with torch.no_grad():
            for (parameter, _), value in zip(before, became, strict=True):
                if not self.rewinds:
                    parameter.copy_(value)
            for masks, (tokens, pieces) in scores.items():
                masks.drop(tokens, pieces, self._counts(*masks.pieces.shape))

    def _counts(self, tokens: int, pieces: int) -> tuple[int, int]:
        return (
            min(int(tokens * self.prune_tokens), tokens - 1),
            min(int(pieces * self.prune_pieces), max(pieces - 4, 0)),
        )

    def _scores(self, model: nn.Module, losses: Iterable[Tensor]) -> dict[Masks, tuple[Tensor, Tensor]]:
        """The mean score of tokens and pieces over the losses, without dropout, at masks of ones."""
        groups: dict[Masks, list[Masked]] = {}
        for graft in lifecycle.own_grafts(model, self, Tokens):
            if isinstance(graft.tokens, Masked):
                groups.setdefault(graft.tokens.masks(), []).append(graft.tokens)
        found: dict[Masks, tuple[Tensor, Tensor]] = {}
        quiet = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]
        for module in quiet:
            module.eval()
        try:
            count = 0
            for loss in lifecycle.singly(losses) if self.singly else losses:
                count += 1
                loss.backward()
                for masks, prompts in groups.items():
                    given = masks.sums(_total(prompts))
                    scores = tuple(self.score(part) for part in given)
                    known = found.get(masks, tuple(map(torch.zeros_like, scores)))
                    found[masks] = (known[0] + scores[0], known[1] + scores[1])
                model.zero_grad(set_to_none=True)
        finally:
            for module in quiet:
                module.train()
        return {masks: (tokens / count, pieces / count) for masks, (tokens, pieces) in found.items()}


@torch.no_grad()
def _total(prompts: Sequence[Masked]) -> Tensor:
    """Σ P ⊙ ∂L/∂P over the prompts of one mask: what the entries of a mask of ones have of the loss's gradient."""
    parts = [p.values * p.values.grad for p in prompts if p.values.grad is not None]
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(prompts[0].values)
