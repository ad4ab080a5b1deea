"""Attention of narrow heads at inference on a CPU, where the fused one takes most of its time for what a head of four channels
does not need: the largest score of each row."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST, MOST = 1e-25, 1e30
"""Sums of exponentials between these lost nothing to rounding beside float32's own."""
CACHE = 4 << 20
"""Bytes of a sample's scores."""


def narrow_attention(
    q: Annotated[Tensor, "S n H d"],
    k: Annotated[Tensor, "S N H d"],
    v: Annotated[Tensor, "S N H d"],
    causal: bool = False,
) -> Annotated[Tensor, "S n H d"]:
    """softmax(q kᵀ / √d) v, without gradients: exp of the scores as they are, a sample at a time; the sum of a row comes with a
    channel of ones beside v. It is the fused attention where a sum says that scores were too large or too small for that, where
    those of a sample leave the cache, where a token sees those before it alone, and elsewhere than in float32 on a CPU."""
    samples, tokens, heads, width = q.shape
    fits = 4 * heads * tokens * k.shape[1] <= CACHE
    if causal or not fits or q.device.type != "cpu" or q.dtype != torch.float32:
        return _fused(q, k, v, causal)
    values = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1).permute(0, 2, 3, 1)
    read, scores = q.new_empty(samples, heads, width + 1, tokens), q.new_empty(heads, k.shape[1], tokens)
    for one, queries, keys, those in zip(read, q.permute(0, 2, 3, 1), k.transpose(1, 2), values, strict=True):
        torch.baddbmm(scores, keys, queries, beta=0, alpha=width**-0.5, out=scores).exp_()
        torch.bmm(those, scores, out=one)
    sums = read[:, :, width:]
    least, most = torch.aminmax(sums)
    if not (least > LEAST and most < MOST):
        return _fused(q, k, v, causal)
    return torch.div(read[:, :, :width], sums, out=q.new_empty(q.shape).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)
