"""`nn.MultiheadAttention` under grafts: its stock forward never calls `out_proj`, nor a kernel for `in_proj_weight`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.classes import Changes
from peft_core.grafts.graft import Delta, grafts
from peft_core.grafts.weight_changes import linear


def check_supported(attention: nn.MultiheadAttention) -> None:
    if not attention._qkv_same_embed_dim or attention.bias_k is not None or attention.add_zero_attn:
        raise PeftError("nn.MultiheadAttention with kdim, vdim, add_bias_kv or add_zero_attn cannot be adapted.")


class AdaptedAttention(Changes):
    """Same arguments, masks and results as nn.MultiheadAttention; softmax(Q Kᵀ/√d + mask) V by SDPA."""

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")  # as the stock class does
        same = query is key and key is value
        if not (batched := query.dim() == 3):
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value, same)
        mask = _mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            heads = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout), None
        y = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _project(self: Any, query: Tensor, key: Tensor, value: Tensor, same: bool) -> list[Tensor]:
        weight, bias = self.in_proj_weight, self.in_proj_bias
        deltas = list(grafts(self, Delta))
        inputs = (query,) if same else (query, key, value)
        outputs = [linear(x, weight, bias, deltas).chunk(3, -1) for x in inputs]
        picked = outputs[0] if same else tuple(chunks[i] for i, chunks in enumerate(outputs))
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in picked]


def self_attend(attention: Any, x: Tensor) -> Tensor:
    """What an attention module gives for x (B N D), any N, passing by the hooks that act where the model calls it."""
    if not isinstance(attention, nn.MultiheadAttention):
        return attention.forward(x)
    x = x if attention.batch_first else x.transpose(0, 1)
    y = attention.forward(x, x, x, need_weights=False)[0]
    return y if attention.batch_first else y.transpose(0, 1)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """One additive mask of B H L S (or broadcast to it) from (L S), (B·H L S) and (B S); True means masked out."""
    total = None
    for mask in (attn_mask, padding):
        if mask is None:
            continue
        if mask is padding:
            mask = mask.view(q.shape[0], 1, 1, k.shape[2])
        elif mask.dim() == 3:
            mask = mask.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
        total = mask.to(q.dtype) if total is None else total + mask.to(q.dtype)
    return total
