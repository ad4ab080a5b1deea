"""Several adapted models of one backbone at one frozen pass."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from peft_core import PeftError, adapt, disabled
from peft_core.kernels.narrow_attention import narrow_attention
from peft_core.methods.side.lst import Ladder
from peft_core.passes.together import Together

METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "linear": ("linear", {}, 0),
    "ladder": ("lst", {"reduction": 4, "skip": None}, 0),
    "another ladder": ("lst", {"reduction": 8, "skip": None}, 0),
    "bypass": ("res_tuning", {"bottleneck": 4}, 0),
    "gathers, joins late": ("dtl", {"beta": 2.0, "start": 2}, 0),
    "another of that name": ("dtl", {"beta": 2.0, "start": 1}, 1),
    "lora in the last block": ("lora", {"blocks": (2,)}, 1),
    "lora everywhere": ("lora", {}, 3),
    "trains stock weights late": ("bitfit", {"blocks": (1, 2)}, 2),
    "prompts": ("vpt", {"tokens": 2, "deep": True}, 3),
    "on its own output": ("capaboost", {}, 3),
}
"""Method, settings, and how many of three blocks are its own."""


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", depth=3, num_classes=5).eval()


def stirred(stock: nn.Module, method: str, settings: dict[str, Any]) -> nn.Module:
    model = adapt(copy.deepcopy(stock), method, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_gives_what_each_gives_alone_and_runs_frozen_blocks_once() -> None:
    stock, x, blocks = backbone(), torch.randn(2, 3, 160, 160), 0
    models = [stirred(stock, method, settings) for method, settings, _ in METHODS.values()]
    with torch.no_grad():
        alone = [model(x) for model in models]
    together = Together(iter(models))
    of_block = type(stock.blocks[0]).forward  # type: ignore[index]

    def counted(self: Any, *args: Any) -> torch.Tensor:
        nonlocal blocks
        blocks += 1
        return of_block(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stock.blocks[0]), "forward", counted)  # type: ignore[index]
        for name, given, wanted in zip(METHODS, together(x), alone, strict=True):
            assert torch.allclose(given, wanted, atol=1e-5), name
    assert blocks == 3 + sum(own for *_, own in METHODS.values())
    shared = {id(model.blocks[0].attn.proj.weight) for model in models}  # type: ignore[index, union-attr]
    assert len(shared) == 1


@pytest.mark.parametrize("pool", ["token", "avg", "max"])
def test_ladders_of_one_form_read_by_one_product(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stock = timm.create_model("test_vit", depth=3, num_classes=5, global_pool=pool).eval()
    x, settings = torch.randn(2, 3, 160, 160), ({"heads": 2}, {"reduction": 8}, {"temperature": 1.0}, {"skip": 2})
    models = [stirred(stock, "lst", {"reduction": 4, "skip": None} | each) for each in settings]
    with torch.no_grad():
        alone = [model(x) for model in models]
        with disabled(models[1]):
            bare = models[1](x)
    together, forward, ran = Together(models), Ladder.forward, []

    def counted(self: Ladder, features: list[torch.Tensor]) -> torch.Tensor:
        ran.append(self)
        return forward(self, features)

    monkeypatch.setattr(Ladder, "forward", counted)
    for given, wanted in zip(together(x), alone, strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
    assert len(ran) == 1  # the one of other rungs
    with torch.autocast("cpu", torch.bfloat16):
        together(x)
    assert len(ran) == 1 + 4  # rounds as each alone does
    with disabled(models[1]):
        first, second, *_ = together(x)
    torch.testing.assert_close(first, alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, bare, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 60.0])
def test_narrow_attention_is_attention_whatever_the_scores(size: float) -> None:
    q, k, v = torch.randn(3, 2, 9, 3, 4).mul(size)
    fused = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(narrow_attention(q, k, v), fused, atol=1e-5 * size, rtol=1e-5)
    torch.testing.assert_close(narrow_attention(q[:, :2], k, v), fused[:, :2], atol=1e-5 * size, rtol=1e-5)
    assert torch.isfinite(fused).all()


def test_other_weights_of_the_backbone_are_not_shared() -> None:
    one, x = backbone(), torch.randn(1, 3, 160, 160)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.blocks[1].mlp.fc1.weight.add_(1)  # type: ignore[index, union-attr]
        wanted = other(x)
    assert torch.allclose(Together([one, other])(x)[1], wanted, atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(PeftError, match="stand on one backbone: a timm ViT of 2 blocks is another"):
        Together([backbone(), timm.create_model("test_vit", depth=2).eval()])
    with pytest.raises(PeftError, match="call eval"):
        Together([backbone().train()])
    with pytest.raises(PeftError, match="give one at least"):
        Together([])
