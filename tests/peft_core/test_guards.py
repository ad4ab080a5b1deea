"""Guards are arithmetic, too: where a kernel's division loses digits, what a dropout drops, how near a fingerprint is."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import PeftError, adapt, load_adapter, save_adapter
from peft_core.grafts.classes import swap_class
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.parts.decomposed import Decomposed, decomposed_linear
from peft_core.parts.scale_shift import ScaleShift, scale_shift_linear
from tests.shapes import WATCHED
from tests.test_house import modules
from tests.tiny import vit


def scaled(weight: Tensor) -> tuple[Any, Callable[..., Tensor], str]:
    delta = ScaleShift(weight, None, 0.02)
    return delta, scale_shift_linear, "gamma"


def decomposed(weight: Tensor) -> tuple[Any, Callable[..., Tensor], str]:
    delta = Decomposed(weight, None, 4, 1.0, weight)
    nn.init.normal_(delta.B, std=0.05)
    return delta, decomposed_linear, "magnitude"


@pytest.mark.parametrize("made", [scaled, decomposed])
@pytest.mark.parametrize("shift", [0.0, 5.0, 100.0])
@pytest.mark.parametrize("low", [False, True])
def test_factors_beside_a_large_shift_get_the_plain_paths_gradient(made: Any, shift: float, low: bool) -> None:
    torch.manual_seed(0)
    weight, bias, x, g = (
        torch.randn(16, 32) / 32**0.5,
        torch.full((16,), shift),
        torch.randn(256, 32),
        torch.randn(256, 16),
    )
    delta, kernel, name = made(weight)
    found = []
    for run in (
        lambda: kernel(x.clone().requires_grad_(), weight, bias, [delta]),
        lambda: F.linear(x, changed_weight(weight, [delta]), changed_bias(bias, [delta], weight)),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = run()
        found += torch.autograd.grad(y, getattr(delta, name), g.to(y.dtype))
    with torch.no_grad():
        v = weight if name == "gamma" else weight + delta.B @ delta.A
        z = x @ v.t() + bias if name == "gamma" else x @ (v / v.norm(dim=1, keepdim=True)).t()
    exact = (g * z).sum(0)
    fast, plain = (float((one - exact).norm() / exact.norm()) for one in found)
    assert fast < (2.5 * plain if low else 1e-4)


@pytest.mark.parametrize("made", [scaled, decomposed])
def test_factors_near_zero_keep_their_gradient(made: Any) -> None:
    torch.manual_seed(0)
    weight, bias, x, g = torch.randn(6, 8), torch.randn(6), torch.randn(40, 8), torch.randn(40, 6)
    delta, kernel, name = made(weight)
    with torch.no_grad():
        getattr(delta, name)[1], getattr(delta, name)[4] = 0.0, 1e-7
    outputs = kernel(x, weight, bias, [delta]), F.linear(x, changed_weight(weight, [delta]), delta.bias(bias))
    leaves = [p for p in delta.parameters()]
    for one, other in zip(*(torch.autograd.grad(y, leaves, g) for y in outputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_sums_of_a_double_model_are_double() -> None:
    weight, x = torch.randn(4, 5, dtype=torch.float64), torch.randn(3000, 5, dtype=torch.float64)
    delta, kernel, _ = scaled(weight)
    g = torch.randn(3000, 4, dtype=torch.float64)
    outputs = kernel(x, weight, None, [delta]), x @ (weight * delta.gamma[:, None]).t() + delta.beta
    for one, other in zip(*(torch.autograd.grad(y, (delta.gamma, delta.beta), g) for y in outputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_adapted_attention_drops_as_many_weights_as_the_stock_one() -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(16, 2, dropout=0.4, batch_first=True).train()
    x = torch.randn(1, 6, 16)
    means, spreads = [], []
    for swapped in (False, True):
        if swapped:
            swap_class(stock)
        for needs in (False, True):
            draws = torch.stack([stock(x, x, x, need_weights=needs)[0] for _ in range(400)])
            means.append(draws.mean(0))
            spreads.append(draws.std(0).mean())
    for mean, spread in zip(means[1:], spreads[1:], strict=True):
        torch.testing.assert_close(mean, means[0], rtol=0, atol=0.05)
        torch.testing.assert_close(spread, spreads[0], rtol=0.1, atol=0)
    stock.eval()
    torch.testing.assert_close(stock(x, x, x)[0], stock(x, x, x, need_weights=False)[0])


def test_a_hint_without_its_mask_is_an_error_as_in_the_stock_class() -> None:
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 3, 8)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
            attention(x, x, x, is_causal=True, need_weights=False)
        swap_class(attention)


@pytest.mark.parametrize("change, fits", [("rounded", True), ("finetuned", False), ("other", False)])
def test_a_fingerprint_forgives_rounding_and_nothing_more(change: str, fits: bool, tmp_path: Path) -> None:
    def stock() -> Any:
        torch.manual_seed(0)
        return vit(embed_dim=48, depth=2)().eval()

    folder, other = save_adapter(adapt(stock(), "lora"), tmp_path / "a"), stock()
    with torch.no_grad():
        for parameter in other.parameters():
            if change == "rounded":
                parameter.copy_(parameter.bfloat16())
            elif change == "finetuned":
                parameter.add_(parameter.abs().mean() * 0.1 * torch.randn_like(parameter))
            elif change == "other":
                parameter.copy_(torch.randn_like(parameter))
    if fits:
        load_adapter(other, folder)
        return
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(PeftError, match="other weights"):
        load_adapter(other, folder)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


CARDS: dict[str, Any] = {
    "backbone": lambda card: card.pop("backbone"),
    "train_head": lambda card: card.update(train_head="yes"),
    "adaptations": lambda card: card.update(adaptations=[]),
    "adaptations.settings": lambda card: card["adaptations"][0].pop("settings"),
    "fingerprint": lambda card: card["backbone"].update(fingerprint=[1.0]),
    "format": lambda card: card.update(format="x"),
    "also_trained": lambda card: card.update(also_trained=[1]),
    "backbone.parameters": lambda card: card["backbone"].update(parameters=True),
    "method": lambda card: card["adaptations"][0].update(method="no_such_method"),
    "rank": lambda card: card["adaptations"][0]["settings"].update(rank="8"),
    "name": lambda card: card["adaptations"][0].update(name="a.b"),
}


@pytest.mark.parametrize("key", CARDS)
def test_a_damaged_card_is_one_sentence_and_a_model_as_it_was(key: str, tmp_path: Path) -> None:
    import json

    folder = save_adapter(adapt(vit()(), "lora"), tmp_path / "a")
    card = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    CARDS[key](card)
    (folder / "adapter.json").write_text(json.dumps(card), encoding="utf-8")
    model = vit()()
    with pytest.raises(PeftError) as caught:
        load_adapter(model, folder)
    assert str(caught.value).count("\n") == 0 and key.rpartition(".")[2] in str(caught.value)
    assert "_peft_record" not in model.__dict__ and all(p.requires_grad for p in model.parameters())


def test_values_that_are_no_numbers_are_not_loaded(tmp_path: Path) -> None:
    model = adapt(vit()(), "lora")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    folder = save_adapter(model, tmp_path / "a")
    with pytest.raises(PeftError, match="no finite numbers"):
        load_adapter(vit()(), folder)


def test_declared_shapes_are_checked_while_tests_run() -> None:
    for module, file in modules().items():
        if "Annotated[Tensor" in file.read_text(encoding="utf-8"):
            import_module(module)
            assert any(name.startswith(f"{module}.") for name in WATCHED), module
    with pytest.raises(AssertionError, match="weight of scale_shift_linear is .*: in is 5 elsewhere"):
        scale_shift_linear(torch.randn(2, 5), torch.randn(3, 4), None, [])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("adapter", {"bottleneck": [0, 0, 0]}),
        ("vpt", {"blocks": []}),
        ("full", {"blocks": []}),
        ("mov", {"targets": (), "feedforward": ()}),
    ],
)
def test_a_method_that_finds_nothing_to_change_says_so(method: str, settings: dict):
    model = vit()()
    with pytest.raises(PeftError, match="finds nothing to change on this timm ViT"):
        adapt(model, method, **settings)
    assert all(p.requires_grad for p in model.parameters()) and "_peft_record" not in vars(model)
