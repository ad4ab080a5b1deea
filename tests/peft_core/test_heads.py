"""Heads: one an adaptation, of any kind, made late or taken away."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_core import (
    adapt,
    count_parameters,
    disabled,
    load_adapter,
    merge,
    remove,
    save_adapter,
)
from tests.peft_core.test_composition import KINDS, X, moved, stock


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
