"""Tokens: they stand in the sequence while a block works, and between blocks no one else sees them."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.calls import hand_on, handed
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
        self.stays = False
        """Whether they stand in what this block gives, too."""
        # carried tokens go in first, so that those of one block stand before them
        self.order = 0 if comes is None and goes is None else -1

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.comes, self.goes = (None if key is None else f"{adaptation}/{key}" for key in (self.comes, self.goes))

    def before(self, x: Tensor) -> Tensor:
        if self.tokens is None:
            tokens = self._carried(x)
        else:
            made = self.tokens(x) if isinstance(self.tokens, nn.Module) else self.tokens
            tokens = self.dropout(made.expand(x.shape[0], -1, -1)).to(x.dtype)
        return torch.cat((x[:, : self.prefix], tokens, x[:, self.prefix :]), dim=1)

    def after(self, y: Tensor) -> Tensor:
        if self.stays:
            return y
        end = self.prefix + self.count
        left = torch.cat((y[:, : self.prefix], y[:, end:]), dim=1)
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
