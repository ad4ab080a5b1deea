"""What is added to tokens that stand in the sequence already."""

from typing import Any

import torch
from torch import Tensor, nn

from peft_core.grafts.graft import Graft


class Added(Graft):
    """x[:, prefix : prefix + P] + P_l, for tokens that are in the sequence already.

    Args:
        values: P_l, P D, or a module that makes it, P D or B P D, of the tokens before and behind them.
        count: how many they are.
        dropout: on what is added, a mask for each sample.
    """

    scalable = False
    order = -1  # right behind the tokens themselves, before other methods' come in

    def __init__(self, values: nn.Parameter | nn.Module, count: int, stream: Any, dropout: float = 0.0) -> None:
        super().__init__()
        self.values, self.prefix, self.count, self.dropout = values, stream.prefix, count, nn.Dropout(dropout)
        self.arg, self.output = stream.arg, stream.output

    def before(self, x: Tensor) -> Tensor:
        end = self.prefix + self.count
        front, tokens, behind = x[:, : self.prefix], x[:, self.prefix : end], x[:, end:]
        made = self.values(torch.cat((front, behind), 1)) if isinstance(self.values, nn.Module) else self.values
        more = self.dropout(made.expand(x.shape[0], -1, -1)).to(x.dtype)
        return torch.cat((front, tokens + more, behind), 1)
