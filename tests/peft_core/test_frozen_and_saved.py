"""What trains is saved, what is frozen stays as it was, and scales lie between."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from peft_core import (
    NotMergeable,
    PeftError,
    adapt,
    disabled,
    load_adapter,
    merge,
    remove,
    save_adapter,
    set_scale,
)
from tests.peft_core.test_composition import X, moved, stock


def test_what_was_unfrozen_by_hand_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = adapt(stock(), "lora")
    model.norm.requires_grad_(True)
    model.cls_token.requires_grad_(True)
    moved(model, by=0.002)
    again = load_adapter(stock(), save_adapter(model, tmp_path / "a"))
    torch.testing.assert_close(again(X), model(X), rtol=0, atol=0)
    assert again.norm.weight.requires_grad
    head = copy.deepcopy(again.head)
    plain = stock()
    plain.head = head
    torch.testing.assert_close(remove(again)(X), plain(X), rtol=0, atol=0)
    torch.testing.assert_close(load_adapter(stock(), save_adapter(model, tmp_path / "a"))(X), model(X), rtol=0, atol=0)


def hybrid() -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_small_resnet26d_224", img_size=32, depth=1, num_classes=5)


@pytest.mark.parametrize("method", ["lora", "linear", "ssf"])
def test_batch_norm_of_the_frozen_part_stands_still(method: str, tmp_path: Path) -> None:
    model = adapt(hybrid(), method).train()
    x = torch.randn(4, 3, 32, 32) * 2 + 1
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "tracked" in k}
    assert before
    for _ in range(2):
        model(x).square().mean().backward()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    y = model.eval()(x)
    torch.testing.assert_close(load_adapter(hybrid(), save_adapter(model, tmp_path / "a")).eval()(x), y)
    model = remove(model.train())
    assert all(m.training for m in model.modules()) and type(model).__name__ == "VisionTransformer"


def test_statistics_that_moved_all_the_same_are_saved_and_taken_back(tmp_path: Path) -> None:
    model = adapt(hybrid(), "lora")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = True  # as a conversion to another class of norm would leave it
    x = torch.randn(4, 3, 32, 32) * 2 + 1
    model(x)
    y = model.eval()(x)
    again = load_adapter(hybrid(), save_adapter(model, tmp_path / "a")).eval()
    torch.testing.assert_close(again(x), y)
    for changed in (model, again):
        head = copy.deepcopy(changed.head)
        plain = hybrid().eval()
        plain.head = head
        torch.testing.assert_close(remove(changed).eval()(x), plain(x), rtol=0, atol=0)


def test_full_fine_tuning_moves_batch_norm_and_saves_it(tmp_path: Path) -> None:
    model = adapt(hybrid(), "full").train()
    x = torch.randn(4, 3, 32, 32) * 2 + 1
    model(x)
    y = model.eval()(x)
    torch.testing.assert_close(load_adapter(hybrid(), save_adapter(model, tmp_path / "a")).eval()(x), y)


def test_scales_that_are_no_numbers_are_refused() -> None:
    model = adapt(stock(), "lora")
    for scale in (float("nan"), float("inf"), "half", None, True):
        with pytest.raises(PeftError, match="finite number"):
            set_scale(model, scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lora", "loha", "lokr", "oft", "ssf"])
def test_a_scale_of_a_half_is_half_way_in_the_weight(method: str) -> None:
    model = moved(adapt(stock(), method, targets="proj"))
    layer = model.blocks[0].attn.proj
    delta = next(iter(layer.peft[method].values()))
    new, bias = delta(layer.weight), delta.bias(layer.bias)
    set_scale(model, 0.5)
    x = torch.randn(3, 24)
    expected = nn.functional.linear(x, (layer.weight + new) / 2, (layer.bias + bias) / 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_two_modules_hold_is_not_merged() -> None:
    model = stock()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    moved(adapt(model, "lora", targets="fc1"))
    y = model(X)
    with pytest.raises(NotMergeable, match="tied to another module's"):
        merge(model)
    torch.testing.assert_close(model(X), y, rtol=0, atol=0)


def test_a_module_that_stands_twice_is_saved(tmp_path: Path) -> None:
    def twice() -> Any:
        model = stock()
        model.blocks[1].mlp = model.blocks[0].mlp
        return model

    model = moved(adapt(twice(), "ssf"))
    torch.testing.assert_close(load_adapter(twice(), save_adapter(model, tmp_path / "a"))(X), model(X))


def test_an_adaptation_may_be_taken_out_while_it_is_off() -> None:
    model, base = moved(adapt(stock(), "lora", train_head=False)), stock()(X)
    with disabled(model):
        remove(model)
    torch.testing.assert_close(model(X), base, rtol=0, atol=0)


def test_a_buffer_that_moved_is_saved(tmp_path: Path) -> None:
    def centred() -> Any:
        model = stock()
        model.register_buffer("centre", torch.zeros(3))
        return model

    model = adapt(centred(), "lora")
    model.centre.add_(1)
    again = load_adapter(centred(), save_adapter(model, tmp_path / "a"))
    assert again.centre.tolist() == [1, 1, 1] and remove(again).centre.tolist() == [0, 0, 0]
