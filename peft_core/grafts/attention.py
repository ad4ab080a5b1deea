"""Attention under grafts: further keys and values, tokens among rotary ones, and `nn.MultiheadAttention`, whose stock
forward never calls `out_proj`, nor a kernel for `in_proj_weight`.

Keys and values join where they meet the queries, in `scaled_dot_product_attention`, whatever the family made them of: fused
or separate projections, norms of q and k, rotations, grouped heads, relative positions in the mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from peft_core.errors import PeftError
from peft_core.grafts.classes import Adapted, Changes
from peft_core.grafts.graft import Call, Delta, Graft, argument, grafts
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
        extra, own = list(grafts(self, KeysValues)), k
        k, v, mask = with_extra(extra, query, q, k, v, mask)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            heads = F.dropout(weights, dropout) @ v
            weights = weights[..., k.shape[2] - own.shape[2] :]  # those of the further keys are nobody's
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout), None
        heads = heads + apart(extra, query, q, own) if extra else heads
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


# ---- keys and values -----------------------------------------------------------------------------------------------


class KeysValues(Graft):
    """Further keys and values of an attention: K, V = make(x), each P W or B P W, for what it is called with, x.

    They stand before its own, seen by every query, softmax(q [K; k]ᵀ/√d) [V; v]; with `apart` they have a softmax of their
    own, whose result is added with the graft's factor. W is the width of its own keys.
    """

    def __init__(self, make: nn.Module, apart: bool = False) -> None:
        super().__init__()
        self.make, self.apart = make, apart
        self.scalable = apart  # type: ignore[misc]

    def heads(self, x: Tensor, q: Tensor, k: Tensor) -> list[Tensor] | None:
        """K and V as B H P d, for queries q and keys k; None where there are none at the moment."""
        return [_as_heads(tokens, q, k) for tokens in self.make(x)]


def _as_heads(tokens: Tensor, q: Tensor, k: Tensor) -> Tensor:
    tokens = tokens.to(k.dtype).unflatten(-1, (-1, k.shape[-1])).transpose(-3, -2)
    if tokens.shape[-3] != k.shape[1]:  # each head of a group shares its key and value
        tokens = tokens.repeat_interleave(k.shape[1] // tokens.shape[-3], -3)
    if tokens.dim() == 3:
        return tokens.expand(q.shape[0], -1, -1, -1)
    return tokens if tokens.shape[0] == q.shape[0] else tokens.repeat_interleave(q.shape[0] // tokens.shape[0], 0)


def with_extra(extra: Sequence[KeysValues], x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None):
    """k, v (B H S d) and the mask (… L S) with those further keys and values that share the softmax in front."""
    for graft in extra:
        if not graft.apart and (more := graft.heads(x, q, k)) is not None:
            more_k, more_v = more
            k, v = torch.cat((more_k, k), 2), torch.cat((more_v, v), 2)
            if mask is not None:
                count = more_k.shape[2]
                mask = mask.expand(*mask.shape[:-1], k.shape[2] - count)
                free = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
                mask = torch.cat((free(*mask.shape[:-1], count), mask), -1)
    return k, v, mask


def apart(extra: Sequence[KeysValues], x: Tensor, q: Tensor, k: Tensor, scale: float | None = None) -> Tensor | float:
    """What the queries find by those with a softmax of their own."""
    found: Tensor | float = 0.0
    for graft in extra:
        if graft.apart and (more := graft.heads(x, q, k)) is not None:
            y = F.scaled_dot_product_attention(q, more[0], more[1], scale=scale)
            found = found + (y if graft.factor == 1.0 else y * graft.factor)
    return found


class _Extended(TorchFunctionMode):
    """Every `scaled_dot_product_attention` within sees the further keys and values."""

    def __init__(self, extra: Sequence[KeysValues], x: Tensor, met: list[bool]) -> None:
        super().__init__()
        self.extra, self.x, self.met = extra, x, met

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.met.append(True)
        return self.attend(*args, **(kwargs or {}))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
        joined = any(not graft.apart for graft in self.extra)
        if is_causal and joined:
            attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        k, v, mask = with_extra(self.extra, self.x, query, key, value, attn_mask)
        y = F.scaled_dot_product_attention(query, k, v, mask, dropout_p, is_causal and not joined, scale=scale)
        return y + apart(self.extra, self.x, query, key, scale)


class Keyed(Adapted):
    """An attention that runs its own forward, with further keys and values where it attends."""

    @property
    def fused_attn(self) -> bool:
        """timm's attention multiplies by hand where this is False."""
        return any(True for _ in grafts(self, KeysValues)) or self.__dict__.get("fused_attn", False)  # type: ignore[arg-type]

    @fused_attn.setter
    def fused_attn(self, value: bool) -> None:
        self.__dict__["fused_attn"] = value

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra = list(grafts(self, KeysValues))
        if not extra:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        met: list[bool] = []
        with _Extended(extra, argument(self, args, kwargs, 0), met):
            y = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not met:
            raise PeftError(f"this {type(self).__name__} attended without scaled_dot_product_attention: {_REMEDY}.")
        return y


_REMEDY = "further keys and values need torch's own attention (attn_implementation sdpa, AttnProcessor2_0)"


def keys_refused(attention: Any, attends: bool) -> str | None:
    """Why an attention takes no further keys and values; None where it does.

    Args:
        attends: its family says that it attends by torch's `scaled_dot_product_attention`.
    """
    stock = getattr(attention, "stock_class", type(attention))
    if issubclass(stock, nn.MultiheadAttention):
        return None
    if not attends:
        return f"nothing is known of how a {stock.__name__} attends"
    if getattr(attention, "scaled_cosine", False):
        return "its scaled cosine attention is not torch's"
    config = getattr(attention, "config", None)
    processor = type(getattr(attention, "processor", None)).__name__
    if getattr(config, "_attn_implementation", "sdpa") != "sdpa" or (
        "processor" in vars(attention) and processor not in ("AttnProcessor2_0", "JointAttnProcessor2_0")
    ):
        return _REMEDY
    return None


class Unrotated(Call):
    """Tokens behind the prefix, which the positions do not count, are turned by no angle (sin 0, cos 1)."""

    def call(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        rope = kwargs.get("rope")
        if rope is None:
            return args, kwargs
        count = args[0].shape[1] - module.num_prefix_tokens - rope.shape[-2]
        shape = (*rope.shape[:-2], count, rope.shape[-1] // 2)
        still = torch.cat((rope.new_zeros(shape), rope.new_ones(shape)), -1)
        return args, kwargs | {"rope": torch.cat((still, rope), -2)}
