"""Tokens: they stand in the sequence while a block works, and between blocks no one else sees them."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.calls import hand_on, handed, state
from peft_core.grafts.graft import Graft


class Tokens(Graft):
    """Tokens P D stand behind the first `prefix` ones of x within a block: (B N D) -> (B N+P D) -> (B N D).

    Of tokens that are carried through several blocks, what a block made of them goes with its output to the next block.
    Features taken between blocks hold none.

    Args:
        tokens: P D where they begin, or a module that makes them, P D or B P D, from x; None where they come from the block
            before.
        comes, goes: under which key they come from the block before and go to the next; None where they begin or end.
        dropout: on the tokens where they begin, a mask for each sample.
    """

    scalable: ClassVar[bool] = False
    wraps: ClassVar[bool] = True
    alone: ClassVar[bool] = False

    def __init__(self, tokens: nn.Parameter | nn.Module | None, count: int, prefix: int, dropout: float, comes: str | None,
                 goes: str | None):  # fmt: skip
        super().__init__()
        self.tokens = tokens
        self.count, self.prefix, self.comes, self.goes = count, prefix, comes, goes
        self.dropout = nn.Dropout(dropout)
        self.pooled: str | None = None
        """Under which key they go to the model's mean over tokens."""
        # carried tokens go in first, so that those of one block stand before them
        self.order = 0 if comes is None and goes is None else -1

    def named(self, adaptation: str, path: str, slot: str) -> None:
        keys = (self.comes, self.goes, self.pooled)
        self.comes, self.goes, self.pooled = (None if key is None else f"{adaptation}/{key}" for key in keys)

    def before(self, x: Tensor) -> Tensor:
        if self.tokens is None:
            tokens = self._carried(x)
        else:
            made = self.tokens(x) if isinstance(self.tokens, nn.Module) else self.tokens
            tokens = self.dropout(made.expand(x.shape[0], -1, -1)).to(x.dtype)
        return torch.cat((x[:, : self.prefix], tokens, x[:, self.prefix :]), dim=1)

    def after(self, y: Tensor) -> Tensor:
        end = self.prefix + self.count
        left = torch.cat((y[:, : self.prefix], y[:, end:]), dim=1)
        if self.pooled is not None:
            state()[self.pooled] = y[:, self.prefix : end].clone(), y.shape[1] - end
        if self.goes is not None:
            hand_on(left, self.goes, y[:, self.prefix : end].clone(), y)  # a view would keep all of y
        return left

    def _carried(self, x: Tensor) -> Tensor:
        found = handed(x, self.comes)
        if found is None:
            raise PeftError(
                "prompts that are carried from block to block need the blocks in one forward: checkpoint them with "
                "use_reentrant=False, or give each block its own (deep=True)."
            )
        return found


class Pooled(Graft):
    """Of a mean m over the N tokens behind the prefix, B D: (N m + Σ p)/(N + P) with the tokens p that a block handed on, B P D.

    No feature holds them, and the head that is called next, the model's own or by hand, counts them.

    Args:
        key: under which they come.
        norm: which the mean's tokens have passed behind the last block.
        order: of the graft that hands them on.
    """

    scalable: ClassVar[bool] = False

    def __init__(self, key: str, norm: nn.Module | None, order: int) -> None:
        super().__init__()
        self.key, self.order = key, order
        self.__dict__["norm"] = norm

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/{self.key}"

    def before(self, x: Tensor) -> Tensor:
        tokens, count = state().pop(self.key, (None, 0))
        if tokens is None:
            return x
        norm = self.__dict__["norm"]
        tokens = tokens if norm is None else norm(tokens)
        return torch.lerp(tokens.mean(1), x, count / (count + tokens.shape[1]))
