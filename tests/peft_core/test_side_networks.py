"""Side networks by their equations, on a ViT's features."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle
from peft_core.attach import grafts_named
from peft_core.kernels.gelu_linear import gelu_linear
from peft_core.lifecycle import Losses
from peft_core.methods.side.res_tuning import Rising
from peft_core.testing import perturb
from tests.tiny import MODELS

X = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=3, num_classes=5)
    return timm.create_model("vit_tiny_patch16_224", **sizes).double().eval()


def features(stock: nn.Module) -> list[Tensor]:
    x = stock.norm_pre(stock.patch_drop(stock._pos_embed(stock.patch_embed(X))))
    found = [x]
    for block in stock.blocks:
        found.append(x := block(x))
    return found


def tuner(t: Any, x: Tensor) -> Tensor:
    return x + F.linear(F.gelu(F.linear(x, t.down.weight, t.down.bias)), t.up.weight, t.up.bias)


def test_a_bypass_sums_lateral_and_vertical_tuners() -> None:
    model = adapt(vit(), "res_tuning", bottleneck=4, blocks=(0, 2)).eval()
    perturb(model)
    stock = vit()
    stock.head.load_state_dict(model.head.state_dict())
    (net,) = [graft.net for _, slot, graft in grafts_named(model, "res_tuning") if slot == "side"]
    h = features(stock)
    b = tuner(net.lateral[0], h[1]) + tuner(net.vertical[0], h[0])
    b = tuner(net.lateral[1], h[3]) + tuner(net.vertical[1], b)
    torch.testing.assert_close(model(X), stock.forward_head(stock.norm(b)))


def test_the_backbone_keeps_nothing_for_a_backward_pass() -> None:
    model = adapt(vit(), "res_tuning", bottleneck=4)
    asked: list[bool] = []
    for block in model.blocks[:-1]:
        block.register_forward_hook(lambda module, args, output: asked.append(output.requires_grad))
    model(X).sum().backward()
    assert asked == [False, False]


def small_block(block: Any, x: Tensor) -> Tensor:
    def norm(n: Any, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, unbiased=False, keepdim=True) + n.eps
        ).sqrt() * n.weight + n.bias

    q, k, v = (
        F.linear(norm(block.norm1, x), block.qkv.weight, block.qkv.bias).unflatten(-1, (3, block.heads, -1)).unbind(2)
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    heads = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
    x = x + F.linear(heads, block.proj.weight, block.proj.bias)
    inner = F.gelu(F.linear(norm(block.norm2, x), block.fc1.weight, block.fc1.bias))
    return x + F.linear(inner, block.fc2.weight, block.fc2.bias)


def test_side_tuning_blends_a_side_of_the_picture_with_the_frozen_features() -> None:
    model = adapt(vit(), "side_tuning", reduction=4, depth=2).eval()
    perturb(model)
    stock = vit()
    stock.head.load_state_dict(model.head.state_dict())
    (net,) = [graft.net for _, slot, graft in grafts_named(model, "side_tuning") if slot == "side"]
    h = features(stock)
    s = F.linear(h[0], net.down.weight, net.down.bias)
    for block in net.blocks:
        s = small_block(block, s)
    a = torch.sigmoid(net.alpha)
    y = a * h[-1] + (1 - a) * F.linear(s, net.up.weight, net.up.bias)
    torch.testing.assert_close(model(X), stock.forward_head(stock.norm(y)))


def losses(model: nn.Module) -> Losses:
    labels = torch.tensor([0, 3])
    return Losses(lambda x: F.cross_entropy(model(x), labels[: len(x)]), [X] * 10)


def test_side_tuning_is_distilled_before_training() -> None:
    missed = []
    for passes in (0, 2, 2):
        torch.manual_seed(0)
        model = adapt(vit(), "side_tuning", reduction=4, depth=1, distill=passes)
        lifecycle.prepare(model, losses(model))
        (net,) = [graft.net for _, slot, graft in grafts_named(model, "side_tuning") if slot == "side"]
        net.missed = []
        model(X)
        missed.append(net.missed[0].item())
        assert net.alpha == 0 and all(p.grad is None for p in model.parameters())
    assert missed[1] < 0.9 * missed[0] and missed[1] == missed[2]


def test_a_ladder_is_cut_from_the_frozen_blocks() -> None:
    model = adapt(vit(), "lst", reduction=4, skip=2, start="fisher", samples=3)
    (graft,) = [graft for _, slot, graft in grafts_named(model, "lst") if slot == "side"]
    before = model.blocks[1].mlp.fc1.weight.clone()
    lifecycle.prepare(model, losses(model))
    assert graft.enabled and torch.equal(model.blocks[1].mlp.fc1.weight, before) and not before.requires_grad
    (only,) = graft.net.blocks  # of block 1: block 0 has no rung with skip 2
    stock_rows = {tuple(row.tolist()) for row in model.blocks[1].attn.proj.bias[:, None]}
    assert {tuple(row.tolist()) for row in only.proj.bias[:, None]} <= stock_rows
    with pytest.raises(PeftError, match="take start=random"):
        gated = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2, embed_dim=32, num_heads=2)
        adapt(gated, "lst", reduction=4, start="magnitude")


def test_a_linear_behind_a_gelu_has_its_gradients() -> None:
    x, w, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (5, 4), (5,)))
    wanted = torch.autograd.grad(F.linear(F.gelu(x), w, b).square().sum(), (x, w, b))
    found = torch.autograd.grad(gelu_linear(x, w, b).square().sum(), (x, w, b))
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradgradcheck(gelu_linear, (x, w, b))


def test_a_unet_gets_its_bypass_whole() -> None:
    model = MODELS["unet"].model()
    for settings, words in (({"blocks": (3,)}, "leave blocks out"), ({"heads": 3}, "32 channels into 3 heads")):
        with pytest.raises(PeftError, match=words):
            adapt(model, "res_tuning", **settings)
    with torch.device("meta"):
        net = Rising([1280, 1280, 1280, 640, 320], 4, 2, {})
    assert sum(p.numel() for p in net.parameters()) == 41_431_520
