"""Several adaptations on one model: each can be off, weighed, merged or out, and the others stay what they were."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_core import (
    NotMergeable,
    PeftError,
    adapt,
    count_parameters,
    disabled,
    list_methods,
    load_adapter,
    merge,
    remove,
    save_adapter,
    set_scale,
)
from peft_core.method import Method
from peft_core.registry import find_method

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"targets": ("q", "v", "fc1")}, "dora": {"rank": 2}, "ssf": {}, "ia3": {}, "adaptformer": {"bottleneck": 4},
    "adapter": {"bottleneck": 4}, "vpt": {"tokens": 2}, "bitfit": {}, "layer_norm": {},
}  # fmt: skip
"""One of each kind of graft and of stock parameters that train."""
PAIRS = list(itertools.product(KINDS, KINDS))
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
    """Both on one model, as "one" and "two", their parameters moved."""
    model = adapt(stock(), first, name="one", train_head=False, **KINDS.get(str(first), {}))
    return moved(adapt(model, second, name="two", train_head=False, **KINDS.get(str(second), {})))


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
def test_every_ordered_pair_of_methods(first: str, tmp_path: Path) -> None:
    """Pairs that cannot be are refused by a sentence, and then the model is the first one's still."""
    known = {name: next(iter(find_method(name).examples())) for name in list_methods()}
    possible = {name: method for name, method in known.items() if works(method)}
    if first not in possible or not possible[first].keeps_originals:
        pytest.skip(f"{first} is not for image classifiers, or keeps no originals")
    for second, method in possible.items():
        if not method.keeps_originals:
            continue
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


# ---- heads ---------------------------------------------------------------------------------------------------------


def trained_run(folder: Path, seed: int, classes: int, method: str = "lora") -> tuple[Path, Tensor]:
    model = moved(adapt(stock(num_classes=classes), method, **KINDS[method]), seed, 0.3)
    return save_adapter(model, folder), model(X).detach()


def test_two_classifiers_on_one_backbone_keep_two_heads(tmp_path: Path) -> None:
    one, of_one = trained_run(tmp_path / "one", 1, 5)
    two, of_two = trained_run(tmp_path / "two", 2, 3)
    model = load_adapter(load_adapter(stock(), one, prefix="a_"), two, prefix="b_")
    count = count_parameters(model)
    assert count.head == 5 * 25 + 3 * 25 and count.inserted == sum(count.by_method.values())
    with disabled(model, "b_lora"):
        torch.testing.assert_close(model(X), of_one)
    with disabled(model, "a_lora"):
        torch.testing.assert_close(model(X), of_two)
    again = load_adapter(stock(), save_adapter(model, tmp_path / "both"))
    with disabled(again, "a_lora"):
        torch.testing.assert_close(again(X), of_two)
    with disabled(again, "b_lora"):
        torch.testing.assert_close(again(X), of_one)
    torch.testing.assert_close(remove(copy.deepcopy(model), "b_lora")(X), of_one)
    y = model(X)
    whole = merge(model)
    torch.testing.assert_close(whole(X), y, rtol=1e-4, atol=1e-5)
    assert whole.state_dict().keys() == stock().state_dict().keys() and whole.head.out_features == 3


def test_the_head_trains_where_one_of_several_adaptations_says_so() -> None:
    model = adapt(adapt(stock(), "lora", train_head=False), "adaptformer", bottleneck=4)
    assert model.head.weight.requires_grad
    model = adapt(adapt(stock(), "lora", train_head=False), "adaptformer", bottleneck=4, train_head=False)
    assert not model.head.weight.requires_grad


class Cosine(nn.Module):
    """Cosine similarity to C prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(7, 24))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(self.prototypes, dim=-1).t()


HEADS: dict[str, Any] = {
    "mlp": lambda: nn.Sequential(nn.Linear(24, 9), nn.GELU(), nn.Linear(9, 7)),
    "normed": lambda: nn.Sequential(nn.BatchNorm1d(24, affine=False), nn.Linear(24, 7)),
    "cosine": Cosine,
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_any_kind_trains_and_is_saved(kind: str, late: bool, tmp_path: Path) -> None:
    def with_head(model: Any) -> Any:
        torch.manual_seed(9)
        model.head = HEADS[kind]()
        return model

    model: Any = stock()
    model = with_head(adapt(model, "lora")) if late else adapt(with_head(model), "lora")
    model.train()
    model(torch.randn(6, 3, 16, 16)).square().sum().backward()
    head = {k: v for k, v in model.state_dict().items() if k.startswith("head.")}
    assert all(p.grad is not None for k, p in model.named_parameters() if k.startswith("head."))
    moved(model.eval())
    folder = save_adapter(model, tmp_path / "a")
    assert head.keys() <= load_file(folder / "adapter.safetensors").keys()
    assert count_parameters(model).head == sum(p.numel() for k, p in model.named_parameters() if k.startswith("head."))
    torch.testing.assert_close(load_adapter(with_head(stock()), folder)(X), model(X))


def test_a_head_made_after_adapt_or_taken_away_again(tmp_path: Path) -> None:
    model = adapt(stock(num_classes=0), "lora")
    model.reset_classifier(6)
    moved(model)
    again = load_adapter(stock(num_classes=6), save_adapter(model, tmp_path / "a"))
    torch.testing.assert_close(again(X), model(X))
    for verb in (merge, remove):
        model = adapt(stock(), "lora")
        model.reset_classifier(0)
        verb(model)
        assert "_peft_record" not in model.__dict__
    model = adapt(stock(num_classes=0, depth=3), "bitfit")
    model.prune_intermediate_layers([0])
    remove(model)


# ---- what trains is saved, what is frozen stays ---------------------------------------------------------------------


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
