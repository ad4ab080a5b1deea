"""Several adaptations on one model: each can be off, weighed, merged or out, and the others stay what they were."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from peft_core import (
    NotMergeable,
    PeftError,
    adapt,
    disabled,
    list_methods,
    load_adapter,
    merge,
    remove,
    save_adapter,
    set_scale,
)
from peft_core.lifecycle import prepare
from peft_core.method import Method
from peft_core.passes.losses import Losses
from peft_core.registry import find_method

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"targets": ("q", "v", "fc1")}, "dora": {"rank": 2}, "ssf": {}, "ia3": {}, "adaptformer": {"bottleneck": 4},
    "adapter": {"bottleneck": 4}, "vpt": {"tokens": 2}, "bitfit": {}, "layer_norm": {},
}  # fmt: skip
"""One of each kind of graft and of stock parameters that train."""
PAIRS = list(itertools.product(KINDS, KINDS))
TURNS = 5
BOTH_TRAIN = {("bitfit", "layer_norm"), ("layer_norm", "bitfit"), ("bitfit", "bitfit"), ("layer_norm", "layer_norm")}


def stock(**settings: Any) -> Any:
    torch.manual_seed(0)
    classes = settings.pop("num_classes", 5)
    sizes = dict(img_size=16, patch_size=8, embed_dim=24, num_heads=2, depth=2, num_classes=0, init_values=0.1)
    model: Any = timm.create_model("vit_tiny_patch16_224", **sizes | settings).eval()
    model.reset_classifier(classes)
    return model


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def moved(model: nn.Module, seed: int = 1, by: float = 0.1) -> Any:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * by)
    return model


def pair(first: str | Method, second: str | Method) -> Any:
    """Both on one model, as "one" and "two", with what they choose from data chosen, their parameters moved."""
    model = adapt(stock(), first, name="one", train_head=False, **KINDS.get(str(first), {}))
    adapt(model, second, name="two", train_head=False, **KINDS.get(str(second), {}))
    with torch.enable_grad():
        prepare(model, Losses(lambda batch: cross_entropy(model(batch[0]), batch[1]), [(X, torch.tensor([1, 2]))]))
    return moved(model)


@torch.no_grad()
def check_pair(first: str | Method, second: str | Method, folder: Path) -> None:
    """Each of two adaptations can be off, weighed, out, merged or loaded again, and the other stays what it was."""
    base, model = stock()(X), pair(first, second)
    y = model(X)
    alone = {}
    for name, other in (("one", "two"), ("two", "one")):
        with disabled(model, other):
            alone[name] = model(X)
        torch.testing.assert_close(model(X), y, rtol=0, atol=0)
    with disabled(model):
        torch.testing.assert_close(model(X), base, rtol=0, atol=0)
    torch.testing.assert_close(model(X), y, rtol=0, atol=0)
    set_scale(model, 0.0, "two")
    set_scale(model, 1.0, "two")
    torch.testing.assert_close(model(X), y, rtol=0, atol=0)
    again = load_adapter(stock(), save_adapter(model, folder / "both"))
    torch.testing.assert_close(again(X), y)
    for name, other in (("one", "two"), ("two", "one")):
        left = remove(copy.deepcopy(model), other)
        torch.testing.assert_close(left(X), alone[name])
        torch.testing.assert_close(remove(left)(X), base, rtol=0, atol=0)
        merged = copy.deepcopy(model)
        try:
            merge(merged, name)
        except NotMergeable:
            torch.testing.assert_close(merged(X), y, rtol=0, atol=0)
            continue
        torch.testing.assert_close(merged(X), y, rtol=1e-4, atol=1e-5)
        with disabled(merged):
            torch.testing.assert_close(merged(X), alone[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(remove(merged)(X), alone[name], rtol=1e-4, atol=1e-5)
    try:
        whole = merge(copy.deepcopy(model))
    except NotMergeable:
        return
    assert [type(module) for module in whole.modules()] == [type(module) for module in stock().modules()]
    torch.testing.assert_close(whole(X), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first, second", PAIRS)
def test_every_ordered_pair_of_kinds(first: str, second: str, tmp_path: Path) -> None:
    if (first, second) not in BOTH_TRAIN:
        check_pair(first, second, tmp_path)
        return
    model = moved(adapt(stock(), first, name="one", **KINDS[first]))
    y = model(X)
    with pytest.raises(PeftError, match="one trains .* already, and two adaptations cannot train one parameter"):
        adapt(model, second, name="two", **KINDS[second])
    torch.testing.assert_close(model(X), y, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("first", sorted(list_methods()))
def test_ordered_pairs_of_methods(first: str, tmp_path: Path) -> None:
    """Pairs that cannot be are refused by a sentence, and then the model is the first one's still.

    Each method comes first before a share of all, the next one before the next share: every pair would take hours."""
    known = {name: next(iter(find_method(name).examples())) for name in list_methods()}
    possible = {name: method for name, method in known.items() if works(method)}
    if first not in possible or not possible[first].keeps_originals:
        pytest.skip(f"{first} is not for image classifiers, or keeps no originals")
    seconds = [name for name, method in possible.items() if method.keeps_originals]
    turn = sorted(list_methods()).index(first) % TURNS
    for second in seconds[turn::TURNS]:
        method = possible[second]
        try:
            pair(possible[first], method)
        except PeftError as error:
            assert "." in str(error)
            continue
        check_pair(possible[first], method, tmp_path / second)


def works(method: Method) -> bool:
    try:
        adapt(stock(), method)
    except PeftError:
        return False
    return True


def test_what_does_not_commute_is_not_merged_past_what_came_before_it() -> None:
    model = pair("ssf", "lora")
    with pytest.raises(
        NotMergeable, match="one acts on the same weight before two .*merge one first, or both together"
    ):
        merge(model, "two")
    merge(pair("lora", "lora"), "two")  # sums do
    y = model(X)
    merge(model, "one")
    merge(model, "two")
    torch.testing.assert_close(model(X), y, rtol=1e-4, atol=1e-5)


def test_a_merge_that_fails_on_the_way_gives_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft_core.adaptation as verbs

    model, write, calls = pair("lora", "ssf"), verbs.write, []

    def failing(*args: Any) -> None:
        calls.append(args)
        write(*args)
        if len(calls) == 3:
            raise MemoryError

    monkeypatch.setattr(verbs, "write", failing)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MemoryError):
        merge(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    monkeypatch.undo()
    y = model(X)
    torch.testing.assert_close(merge(model)(X), y, rtol=1e-4, atol=1e-5)


def test_an_adapt_that_fails_on_the_way_leaves_a_stock_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hooks = stock(), 0
    original = nn.Module.register_forward_hook

    def failing(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal hooks
        hooks += 1
        if hooks == 3:
            raise MemoryError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "register_forward_hook", failing)
    with pytest.raises(MemoryError):
        adapt(model, "adaptformer", bottleneck=4)
    plain = stock()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters()) and "_peft_record" not in model.__dict__
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_distillation_against_the_base_and_scales_keep_a_graph_whole() -> None:
    for method in ("bitfit", "layer_norm", "lora"):
        model = moved(adapt(stock(), method)).train()
        y = model(X)
        with torch.no_grad(), disabled(model):
            base = model(X)
        (y - base).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_optimiser_keeps_its_parameters_through_disabled() -> None:
    model = adapt(stock(), "bitfit")
    before = [p for p in model.parameters() if p.requires_grad]
    with disabled(model):
        assert sum(p.requires_grad for p in model.parameters()) == 2  # the head's
    assert all(a is b for a, b in zip(before, (p for p in model.parameters() if p.requires_grad), strict=True))
