"""A small pre-norm transformer block, for networks beside the frozen one."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.kernels.gelu_linear import gelu_linear
from peft_core.kernels.narrow_attention import narrow_attention


class SmallBlock(nn.Module):
    """x ← x + proj(attention(qkv(norm1 x))), x ← x + fc2(gelu(fc1(norm2 x))) for x B N d; with `causal` a token sees those
    before it alone."""

    def __init__(self, width: int, heads: int, causal: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width, **options), nn.LayerNorm(width, **options)
        self.qkv, self.proj = nn.Linear(width, 3 * width, **options), nn.Linear(width, width, **options)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, **options), nn.Linear(4 * width, width, **options)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        return x + gelu_linear(self.fc1(self.norm2(x)), self.fc2.weight, self.fc2.bias)

    def inferred(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """What forward gives, without gradients, or its first `tokens` tokens alone."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, x = q[:, :tokens], x[:, :tokens]
        x = x + self.proj(narrow_attention(q, k, v, self.causal).flatten(2))
        return x + gelu_linear(self.fc1(self.norm2(x)), self.fc2.weight, self.fc2.bias)
