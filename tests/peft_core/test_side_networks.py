"""Side networks by their equations, on a ViT's features."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import adapt
from peft_core.attach import grafts_named
from peft_core.testing import perturb

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
