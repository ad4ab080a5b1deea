"""AdapterDrop: which blocks go without, in a step and at use; nothing runs backward below; a resumed run draws the same."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle
from peft_core.attach import grafts_named
from peft_core.grafts.graft import Graft
from peft_core.lifecycle import Progress
from peft_core.methods.adapters.adapter_drop import Dropping, without
from peft_core.testing import perturb
from tests.peft_core.test_made_prompts import DEPTH, X, vit, walk

ADAPTER: dict[str, Any] = {"of": "adapter", "settings": {"bottleneck": 3}}
LORA: dict[str, Any] = {"of": "lora", "settings": {"rank": 2, "targets": ("q", "fc1")}}


def dropped(model: nn.Module) -> int:
    """How many of the lowest blocks got no gradient."""
    model.zero_grad(set_to_none=True)
    seen: list[bool] = []
    hooks = [block.register_forward_hook(lambda m, a, y: seen.append(y.requires_grad)) for block in model.blocks]  # type: ignore
    model(X).sum().backward()
    for hook in hooks:
        hook.remove()
    grads = [
        any(p.grad is not None for k, p in model.named_parameters() if k.startswith(f"blocks.{n}."))
        for n in range(DEPTH)
    ]
    lowest = grads.index(True)
    assert seen == grads == [n >= lowest for n in range(DEPTH)]
    return lowest


def step(model: nn.Module, number: int) -> int:
    count = dropped(model)
    lifecycle.after_step(model, Progress(number, 40))
    return count


@pytest.mark.parametrize("inner", [ADAPTER, LORA], ids=["adapter", "lora"])
def test_the_first_blocks_go_without_and_nothing_runs_backward_there(inner: dict[str, Any]) -> None:
    model = adapt(vit(), "adapter_drop", **inner).train()
    perturb(model)
    counts = [step(model, n + 1) for n in range(12)]
    assert set(counts) == set(range(DEPTH - 1))  # never the last but one
    resumed = adapt(vit(), "adapter_drop", **inner).train()
    for n in range(5):
        step(model, 13 + n)
    lifecycle.load_state(resumed, copy.deepcopy(lifecycle.state(model)))
    assert [step(resumed, 18 + n) for n in range(6)] == [step(model, 18 + n) for n in range(6)]


def test_at_use_all_act_or_chosen_ones_go_without() -> None:
    model = adapt(vit(), "adapter_drop", **ADAPTER)
    perturb(model)
    stock = vit()
    stock.load_state_dict({key: value for key, value in model.state_dict().items() if "peft" not in key.split(".")})
    model.train()(X)  # draws
    model.eval()
    stock.eval()
    changes = [graft.change for _, _, graft in grafts_named(model, "adapter_drop") if not isinstance(graft, Dropping)]

    def expected(*gone: int) -> Tensor:
        def block(index: int, x: Tensor) -> Tensor:
            layer = stock.blocks[index]
            x = x + layer.attn(layer.norm1(x))
            m = layer.mlp(layer.norm2(x))
            return x + m if index in gone else x + m + changes[index](m)

        return walk(stock, block)

    torch.testing.assert_close(model(X), expected())
    with without(model, (0, 2)):
        torch.testing.assert_close(model(X), expected(0, 2))
    torch.testing.assert_close(model(X), expected())
    skipping = adapt(vit(), "adapter_drop", **ADAPTER, skip=(0, 1))
    skipping.load_state_dict(model.state_dict())
    torch.testing.assert_close(skipping.eval()(X), expected(0, 1))
    assert all(isinstance(graft, Graft) for _, _, graft in grafts_named(copy.deepcopy(skipping), "adapter_drop"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"of": "vpt", "settings": {"tokens": 2}}, "each in its own block"),
        ({"of": "dtl"}, "each in its own block"),
        ({"of": "adalora"}, "wants more of training"),
        ({"of": "bitfit"}, "drops what stands in blocks"),
        ({"settings": {"blocks": [1]}}, "takes blocks itself"),
        ({"of": "adaptr"}, "adapter"),
    ],
)
def test_what_cannot_be_dropped_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PeftError, match=words):
        adapt(vit(), "adapter_drop", **settings)


def test_a_model_without_it_has_nothing_to_leave_out() -> None:
    with pytest.raises(PeftError, match="no adaptation by adapter_drop"), without(adapt(vit(), "adapter"), (0,)):
        pass
