"""Changes of what a weight reads, and of the bias by what they make of the weight: alone, beside others, merged, refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from peft_core import NotMergeable, PeftError, adapt, merge
from peft_core.grafts.weight_changes import changed_bias, changed_weight, linear
from peft_core.methods.adapters.rep_adapter import Grouped
from peft_core.methods.scaling.road import Turn
from peft_core.parts.input_map import MappedInput
from peft_core.parts.lowrank import LowRank
from peft_core.testing import perturb
from tests.tiny import MODELS

OPTIONS: dict[str, Any] = {"dtype": torch.float64}


def changes(dropout: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, LowRank, MappedInput]:
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 8, **OPTIONS), torch.randn(6, **OPTIONS)
    below, change = LowRank(weight, None, 2, 1.5), MappedInput(Grouped(8, 4, 2, 3.0, dropout, OPTIONS))
    for parameter in (*below.parameters(), *change.parameters()):
        torch.nn.init.normal_(parameter)
    return weight, bias, below, change


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("beside", [False, True])
def test_the_input_and_the_weight_change_alike(factor: float, beside: bool) -> None:
    weight, bias, below, change = changes()
    change.factor = factor
    deltas = [below, change] if beside else [change]
    x = torch.randn(3, 5, 8, **OPTIONS)
    new = weight if not beside else below(weight)
    expected = F.linear(x + change.change(x) * factor, new, bias)
    torch.testing.assert_close(linear(x, weight, bias, deltas), expected)
    torch.testing.assert_close(
        F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight)), expected
    )


def test_dropout_beside_another_change_drops_what_it_drops_alone() -> None:
    weight, bias, below, change = changes(dropout=0.5)
    x = torch.randn(3, 5, 8, **OPTIONS)
    torch.manual_seed(1)
    expected = F.linear(x + change.change(x), below(weight), bias)
    torch.manual_seed(1)
    torch.testing.assert_close(linear(x, weight, bias, [below, change]), expected)
    torch.manual_seed(1)
    assert not torch.allclose(linear(x, weight, bias, [below, change.eval()]), expected)


def test_two_of_them_act_as_their_weights_do() -> None:
    weight, bias, _, first = changes()
    second = MappedInput(Grouped(8, 4, 1, 0.5, 0.0, OPTIONS))
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter)
    x, deltas = torch.randn(3, 8, **OPTIONS), [first, second]
    expected = F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight))
    torch.testing.assert_close(linear(x, weight, bias, deltas), expected)


@pytest.mark.parametrize("method", ["rep_adapter", "arc", "glora", "road", "rlrr"])
def test_it_merges_over_another_change_and_not_under_it(method: str) -> None:
    tiny, settings = (
        MODELS["vit"],
        {"road": {"group_size": 4}, "rep_adapter": {"bottleneck": 4}, "arc": {"bottleneck": 6}},
    )
    model = adapt(tiny.model().eval(), "lora", rank=2, targets=("q", "proj", "fc1"))
    adapt(model, method, **settings.get(method, {}))
    perturb(model)
    y = tiny(model)
    with pytest.raises(NotMergeable, match="merge lora first, or both together"):
        merge(model, method)
    torch.testing.assert_close(tiny(merge(model)), y, rtol=1e-5, atol=1e-5)


def test_a_shift_by_rows_needs_no_bias_to_run_and_one_to_merge() -> None:
    weight = torch.randn(6, 4, **OPTIONS)
    change = Turn(weight, (2, 4), "road_1", 2)
    assert changed_bias(None, [change], weight) is None
    model = adapt(MODELS["rms_norm"].model().eval(), "rlrr", targets=("k",), norms=())
    perturb(model)
    assert MODELS["rms_norm"](model).isfinite().all()
    with pytest.raises(NotMergeable, match="has no bias that could take the shift"):
        merge(model)


def test_it_stands_before_the_body_where_the_readers_cannot_be_changed() -> None:
    model = adapt(MODELS["eva_fused"].model().eval(), "rep_adapter", bottleneck=4)
    keys = {key.partition(".peft.")[0] for key, _ in model.named_parameters() if ".peft." in key}
    assert "blocks.0.attn" in keys and "blocks.0.attn.qkv" not in keys
    with pytest.raises(NotMergeable, match="no weight that could take"):
        merge(model)


@pytest.mark.parametrize(
    "method, settings, sentence",
    [
        (
            "road",
            {},
            "road cannot split the 48 outputs of q at blocks.0.attn.qkv into groups of 64: set group_size to 16.",
        ),
        ("road", {"group_size": 3}, "group_size must be 2 or more and a multiple of 2, not 3."),
        ("road", {"targets": ("norm1",)}, "has a vector for a weight, no matrix"),
        (
            "rep_adapter",
            {"groups": 3},
            "splits 8 hidden and 48 outer features into 3 groups: choose groups that divide both.",
        ),
        ("rep_adapter", {"bottleneck": 49}, "got the width 49, above the layer's width 48."),
        ("arc", {}, "got the width 50, above the layer's width 48."),
        ("glora", {"layers": ("llvcn",)}, "got 1 words in layers for 12 layers: give one a layer."),
        ("glora", {"layers": ("llccn",) * 12}, '"llccn" in layers: a word is five letters for A to E'),
        ("glora", {"rank": 49}, "got rank 49, above the width 48"),
        ("glora", {"targets": ("patch_embed",)}, "a convolution whose edges would not see C: set C=none."),
    ],
)
def test_what_does_not_fit_is_refused(method: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PeftError) as refused:
        adapt(MODELS["vit"].model(), method, **settings)
    assert sentence in str(refused.value)
