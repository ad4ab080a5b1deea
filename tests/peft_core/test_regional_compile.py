"""Blocks compiled one by one, beside eager ones: what grafts hand on crosses the borders."""

from typing import Any

import pytest
import torch

from peft_core import adapt
from peft_core.registry import make_method
from peft_core.testing import loss, perturb
from tests.tiny import MODELS

KINDS: dict[str, dict[str, Any]] = {
    "vpt": {"tokens": 2}, "lst": {"reduction": 4, "skip": None}, "adaptformer": {"bottleneck": 4, "dropout": 0.0},
    "vera": {"rank": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    "compiled", [(0,), *(pytest.param(each, marks=pytest.mark.slow) for each in ((1,), (0, 1)))], ids=str
)
@pytest.mark.parametrize("method", KINDS)
def test_compiled_blocks_stand_beside_eager_ones(method: str, compiled: tuple[int, ...]):
    tiny = MODELS["vit"]
    model = adapt(tiny.model(), make_method(method, **KINDS[method])).eval()
    perturb(model)
    found = []
    for regional in (False, True):
        torch._dynamo.reset()
        for block in compiled if regional else ():
            model.blocks[block].compile(backend="aot_eager", fullgraph=True)
        model.zero_grad(set_to_none=True)
        y = tiny(model)
        loss(y).backward()
        found.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for eager, mixed in zip(*found, strict=True):
        torch.testing.assert_close(mixed, eager, rtol=1e-4, atol=1e-5)
