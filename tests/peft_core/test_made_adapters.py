"""Adapters and mixtures against the papers' equations written out block by block, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import PeftError, adapt
from tests.peft_core.test_made_prompts import DIM, X, adapted, vit, walk


def mixed(y: Tensor, mixture: nn.Module, heads: int) -> Tensor:
    """Each token and head by itself."""
    vectors, router = 1 + mixture.vectors, mixture.router
    parts = y.unflatten(-1, (heads, -1)).clone()
    for head in range(heads):
        share = torch.softmax(parts[..., head, :] @ router.t(), -1)
        parts[..., head, :] = parts[..., head, :] * (share @ vectors[head])
    return parts.flatten(-2)


def test_mov_mixes_vectors_for_each_token_and_head() -> None:
    model, stock, grafts = adapted("mov", experts=3)

    def block(index: int, x: Tensor) -> Tensor:
        layer, of = stock.blocks[index], lambda name: grafts[f"blocks.{index}.{name}"]
        q, k, v = layer.attn.qkv(layer.norm1(x)).chunk(3, -1)
        k, v = mixed(k, of("attn.qkv/k").mixture, 2), mixed(v, of("attn.qkv/v").mixture, 2)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v))
        x = x + layer.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + layer.mlp.fc2(mixed(F.gelu(layer.mlp.fc1(layer.norm2(x))), of("mlp.fc2/fc2").change, 1))

    torch.testing.assert_close(model(X), walk(stock, block))


@pytest.mark.parametrize("position", ["series", "linears"])
def test_llm_adapters_forms(position: str) -> None:
    model, stock, grafts = adapted(
        "adapter", position=position, bottleneck=3, activation="tanh", bias=False, init="normal", scale=2.0
    )

    def added(path: str, x: Tensor) -> Tensor:
        change = grafts[path].change
        assert change.down.bias is None and change.up.bias is None
        return 2.0 * torch.tanh(x @ change.down.weight.t()) @ change.up.weight.t()

    def block(index: int, x: Tensor) -> Tensor:
        layer, at = stock.blocks[index], f"blocks.{index}.mlp"
        x = x + layer.attn(layer.norm1(x))
        inner = layer.norm2(x)
        if position == "series":
            return x + layer.mlp(inner + added(f"{at}.fc1/before", inner))
        hidden = F.gelu(layer.mlp.fc1(inner) + added(f"{at}.fc1/fc1_beside", inner))
        return x + layer.mlp.fc2(hidden) + added(f"{at}.fc2/fc2_beside", hidden)

    torch.testing.assert_close(model(X), walk(stock, block))


def test_sct_says_that_channels_are_not_chosen() -> None:
    with pytest.raises(PeftError, match="call peft_core.lifecycle.prepare"):
        adapt(vit().float(), "sct", channels=3)(X.float())
    with pytest.raises(PeftError, match=f"above the layer's width {DIM}"):
        adapt(vit(), "sct", channels=DIM + 1)
