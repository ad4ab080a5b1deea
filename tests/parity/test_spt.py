"""SPT beside ziplab/SPT@e385f67, in float64 on timm's names (q, k and v as rows of the fused qkv): `get_sensitivity` of engine.py
with a number of sensitive entries in place of its 79 of 20,000 and up, and a step of `VisionTransformerSPT` without dropout and
drop path, with the entries that it chose but those of norms, which it leaves as they are; adapters of all but `proj`."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import adapt, count_parameters, lifecycle, merge
from tests.parity.golden import golden, values
from tests.parity.test_official import LABELS, PICTURES, check, vit, whole

BATCHES = [(PICTURES, LABELS), (values("x", (4, 3, 8, 8)), torch.tensor([4, 3, 0, 1]))]


def filled(**settings: Any) -> nn.Module:
    model = vit()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(values(key, whole(key, parameter.shape, None)).view_as(parameter))
    return adapt(model, "spt", rank=2, **settings)


def changes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Their name of a layer, and what changes it."""
    for path, module in model.named_modules():
        for role, graft in module._modules["peft"].spt.items() if "peft" in module._modules else ():
            if not role.endswith("_adapter"):
                yield path.replace("attn.qkv", f"attn.{role}"), graft


@pytest.mark.parametrize("form, top", [("lora", 60), ("lora", 500), ("adapter", 500)])
def test_what_is_structured_and_which_entries_train_is_the_authors(form: str, top: int) -> None:
    there = {
        key.removeprefix(f"{form}.{top}."): value for key, value in golden("spt_choice").items() if key.startswith(form)
    }
    budget = int(there["total"])
    model = filled(form=form, entries=budget, class_token=False)
    assert count_parameters(model).inserted == budget
    lifecycle.prepare(model, lifecycle.Losses(lambda batch: F.cross_entropy(model(batch[0]), batch[1]), BATCHES))
    assert count_parameters(model).inserted == budget
    entire, entries = set(), {}
    for name, change in changes(model):
        if change.structure:
            entire.add(f"{name}.weight")
        for key, indices, size in (
            ("weight", change.indices, change.shape[0] * change.shape[1]),
            ("bias", change.bias_indices, change.shape[0]),
        ):
            if len(indices) == size:
                entire.add(f"{name}.{key}")
            elif len(indices):
                entries[f"{name}.{key}"] = indices
    assert entire == {key.removeprefix("whole.") for key in there if key.startswith("whole.")}
    assert entries.keys() == {key.removeprefix("entries.") for key in there if key.startswith("entries.")}
    assert all(torch.equal(indices, there[f"entries.{key}"]) for key, indices in entries.items())


@pytest.mark.parametrize("form", ["lora", "adapter"])
def test_a_step_is_the_authors(form: str) -> None:
    there = golden(f"spt_{form}")
    model = filled(form=form)
    for name, change in changes(model):
        if f"grad.{name}.down.weight" in there:
            change.structure.begin()
        of_bias = there.get(f"entries.{name}.bias", torch.empty(0))
        if f"grad.{name}.bias" in there:
            of_bias = torch.arange(change.shape[0])
        change.choose(there.get(f"entries.{name}.weight", torch.empty(0)), of_bias)
    names = {key: key for key, _ in model.named_parameters()}
    keys = {id(parameter): key for key, parameter in model.named_parameters()}

    def give(parameter: Any, name: str, value: Tensor | None = None) -> None:
        names[keys[id(parameter)]] = name
        parameter.data.copy_(values(name, parameter.shape) if value is None else value)

    for name, change in changes(model):
        entire = len(change.bias_indices) == change.shape[0]  # a stock parameter there, a difference to it here
        zeros = torch.zeros(change.shape[0]) if entire else None
        give(change.bias_values, f"{name}.bias" if entire else f"{name}.sparse_bias", zeros)
        give(change.values, f"{name}.sparse_weight")
        if change.structure:
            lora = {"A": "down.weight", "B": "up.weight"}
            for key, parameter in change.structure.module.named_parameters():
                give(parameter, f"{name}.{lora.get(key, key)}")
    for parameter in model.parameters():
        if not parameter.numel():
            parameter.requires_grad_(False)
    check(f"spt_{form}", model, names, lambda: model(PICTURES), LABELS, lambda: None)
    if form == "lora":
        y = model(PICTURES)
        torch.testing.assert_close(merge(model)(PICTURES), y, rtol=1e-10, atol=1e-12)
