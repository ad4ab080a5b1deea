"""Tokens: inserted before a block, stripped behind one."""

import torch
from torch import Tensor, nn

from peft_core.grafts.graft import Graft


class Insert(Graft):
    """Tokens P D go behind the first `prefix` tokens of x: (B N D) -> (B N+P D); dropout draws a mask a sample."""

    scalable = False

    def __init__(self, tokens: nn.Parameter, prefix: int, dropout: float, carried: bool):
        super().__init__()
        self.tokens = tokens
        self.prefix = prefix
        self.dropout = nn.Dropout(dropout)
        self.carried = carried

    @property
    def order(self) -> int:  # type: ignore[override]
        # Tokens carried through several blocks go in first, so that those of one block stand before them when stripped.
        return -1 if self.carried else 0

    def before(self, x: Tensor) -> Tensor:
        tokens = self.dropout(self.tokens.expand(x.shape[0], -1, -1)).to(x.dtype)
        return torch.cat((x[:, : self.prefix], tokens, x[:, self.prefix :]), dim=1)


class Strip(Graft):
    """Takes the `count` tokens behind the first `prefix` ones out again."""

    scalable = False

    def __init__(self, count: int, prefix: int):
        super().__init__()
        self.count, self.prefix = count, prefix

    def after(self, y: Tensor) -> Tensor:
        return torch.cat((y[:, : self.prefix], y[:, self.prefix + self.count :]), dim=1)
