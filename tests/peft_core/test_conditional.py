"""Blocks that see the highest-scored tokens alone: the soft top-k, a block by its equation, what is really saved."""

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import PeftError, adapt, disabled
from peft_core.attach import grafts_named
from peft_core.counting import count_flops, kept_bytes
from peft_core.methods.adapters.coda import soft_top_k
from peft_core.testing import perturb
from tests.parity.golden import golden, values

SIZES: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=3, num_classes=5)
MEAN: dict[str, Any] = dict(embed_dim=64, class_token=False, global_pool="avg")
X = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **SIZES | changes).double().eval()


@pytest.mark.parametrize("epsilon", [0.03, 0.5])
def test_the_soft_top_k_is_that_of_coordinate_descent(epsilon: float) -> None:
    """lucidrains/CoLT5-attention f2a8da0, `coor_descent` with 20 rounds, ε from 4 by 0.7."""
    there, scores = golden("coda_soft_top_k"), (4 * values("scores", (3, 16))).requires_grad_()
    soft = soft_top_k(scores, 5, epsilon, 20)
    torch.testing.assert_close(soft, there[f"soft.{epsilon}"], rtol=1e-6, atol=1e-9)
    (soft * values("weights", (3, 16))).sum().backward()
    torch.testing.assert_close(scores.grad, there[f"grad.{epsilon}"], rtol=1e-5, atol=1e-9)


def test_the_soft_top_k_is_the_maximum_with_entropy() -> None:
    """λ_i = min(1, exp((s_i + a)/ε)) with the a for which Σ λ = k, found by halving."""
    scores = values("scores", (16,))
    low, high = -10.0, 10.0
    for _ in range(100):
        a = (low + high) / 2
        low, high = (a, high) if ((scores + a) / 0.5).exp().clamp(max=1).sum() < 5 else (low, a)
    expected = ((scores + low) / 0.5).exp().clamp(max=1)
    torch.testing.assert_close(soft_top_k(scores, 5, 0.5, 200), expected, rtol=1e-6, atol=1e-8)


def by_hand(model: Any, block: nn.Module, graft: Any, x: Tensor) -> Tensor:
    found = []
    for sample in x:
        patches = sample[1:]
        count = math.ceil(len(patches) / graft.reduction)
        soft = soft_top_k(patches @ graft.router, count, graft.epsilon, graft.rounds)
        chosen = sorted(range(len(patches)), key=lambda n: -soft[n].item())[:count]
        seen = torch.stack([sample[0], *(patches[n] for n in chosen)])[None]
        change = (block(seen) - seen)[0]
        a = graft.adapter
        y = sample + F.linear(F.gelu(F.linear(sample, a.down.weight, a.down.bias)), a.up.weight, a.up.bias)
        rows = list(y)
        rows[0] = rows[0] + change[0]
        for place, n in enumerate(chosen, 1):
            rows[n + 1] = rows[n + 1] + soft[n] * change[place]
        found.append(torch.stack(rows))
    return torch.stack(found)


def test_a_model_is_its_blocks_on_the_chosen_tokens() -> None:
    model = adapt(vit(), "coda", bottleneck=4, epsilon=0.5)
    perturb(model)
    stock = vit()
    stock.head.load_state_dict(model.head.state_dict())
    x = stock.norm_pre(stock.patch_drop(stock._pos_embed(stock.patch_embed(X))))
    grafts = [graft for _, _, graft in grafts_named(model, "coda")]
    assert len(grafts) == 2  # a class token is read: the last block sees all
    for block, graft in zip(stock.blocks, grafts, strict=False):
        x = by_hand(stock, block, graft, x)
    x = stock.blocks[2](x)
    torch.testing.assert_close(model(X), stock.forward_head(stock.norm(x)))
    expected = torch.autograd.grad(stock.forward_head(stock.norm(x)).square().sum(), [g.router for g in grafts])
    found = torch.autograd.grad(model(X).square().sum(), [g.router for g in grafts])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with disabled(model):
        torch.testing.assert_close(model(X), stock(X), rtol=0, atol=0)


def test_a_block_really_costs_less() -> None:
    stock, model = vit(**MEAN), adapt(vit(**MEAN), "coda", reduction=4, bottleneck=4)
    assert count_flops(lambda: model(X)) < 0.5 * count_flops(lambda: stock(X))
    other = adapt(vit(**MEAN), "adapter", bottleneck=4)
    assert kept_bytes(lambda: model(X).sum(), model) < 0.7 * kept_bytes(lambda: other(X).sum(), other)


def test_every_token_chosen_is_the_block_beside_an_adapter() -> None:
    model, stock = adapt(vit(), "coda", reduction=1.0), vit()
    stock.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(model(X), stock(X))


def test_positions_within_attention_are_refused() -> None:
    with pytest.raises(PeftError, match="by their places in the whole sequence"):
        adapt(timm.create_model("eva02_tiny_patch14_224", **SIZES), "coda")
    with pytest.raises(PeftError, match="choose blocks before block 2"):
        adapt(vit(), "coda", blocks=(2,))
    with pytest.raises(PeftError, match="1 or more"):
        adapt(vit(), "coda", reduction=0.5)
