"""S3PET's gates and pick against thunlp/S3Delta c8fbd09 (functions of `s3delta.py` and `sparse_structure_search.py`, float64),
and its search: within the budget, back at the start, and with the sizes that a checkpoint holds.
"""

from typing import Any

import pytest
import torch

from peft_core import PeftError, adapt, count_parameters, lifecycle, load_adapter, save_adapter
from peft_core.adapter_file import fit_grafts
from peft_core.attach import is_inserted
from peft_core.parts.selection.structure import Structure, pick, probabilities
from peft_core.registry import make_method
from peft_core.stock import adapter_state
from tests.parity.golden import golden
from tests.peft_core.test_lifecycle import fit
from tests.tiny import MODELS


def test_gates_their_gradient_and_the_pick_are_the_authors() -> None:
    there = golden("s3pet")
    alphas = there["alphas"].clone().requires_grad_()
    p = probabilities(alphas, there["sizes"], int(there["budget"]), 1.0)
    torch.testing.assert_close(p, there["p"], rtol=1e-6, atol=1e-8)
    u = there["us"]
    z = torch.sigmoid((u * p / ((1 - u) * (1 - p))).log())
    torch.testing.assert_close(z, there["z"], rtol=1e-6, atol=1e-8)
    (z * there["w"]).sum().backward()
    torch.testing.assert_close(alphas.grad, there["grad"], rtol=1e-6, atol=1e-8)
    assert pick(p.detach(), there["sizes"].tolist(), int(there["budget"])) == there["picked"].tolist()


class Batches:
    """Losses of a task in which what the last block's fc2 adds is all that counts."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model: Any = model
        self.x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Any:
        return ((self.model.forward_features(x)[:, 0] - 1).square().mean() for x in self.x.split(2))


def searched(budget: int = 600) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    model = adapt(MODELS["vit"].model().train(), "s3pet", parameters=budget, search_epochs=3, search_lr=0.05)
    (method,) = [a.method for a in model.__dict__["_peft_record"].adaptations.values()]
    return model, method


def test_the_search_keeps_what_the_budget_allows_and_begins_anew(tmp_path) -> None:
    model, method = searched()
    with pytest.raises(PeftError, match="call peft_core.lifecycle.prepare"):
        lifecycle.after_step(model, 0.5)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    lifecycle.prepare(model, Batches(model))
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in start.items() if not is_inserted(key))
    left = {key: value for key, value in state.items() if is_inserted(key) and value.numel()}
    assert left and all(torch.equal(value, start[key]) for key, value in left.items())
    smallest = min(size for change in lifecycle.own_grafts(adapt(MODELS["vit"].model(), method), method, Structure)
                   for size in change.sizes().values())  # fmt: skip
    assert 600 - smallest < count_parameters(model).inserted <= 600
    lifecycle.after_step(model, 0.5)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if is_inserted(key):
                p.normal_()
    y = MODELS["vit"](model.eval())
    save_adapter(model, tmp_path)
    torch.testing.assert_close(MODELS["vit"](load_adapter(MODELS["vit"].model().eval(), tmp_path)), y)
    fresh, _ = searched()  # as a run that goes on does
    fit_grafts(fresh, adapter_state(model))
    fresh.load_state_dict(adapter_state(model), strict=False)
    torch.testing.assert_close(MODELS["vit"](fresh.eval()), y)
    lifecycle.after_step(fresh, 0.5)


def test_a_search_comes_out_the_same_again_and_a_tiny_budget_is_told() -> None:
    states = []
    for _ in range(2):
        model, _ = searched()
        torch.manual_seed(1)
        lifecycle.prepare(model, Batches(model))
        states.append([tuple(p.shape) for key, p in model.named_parameters() if is_inserted(key)])
    assert states[0] == states[1]
    with pytest.raises(PeftError, match="budget of 7 parameters is below its smallest structure, of 48"):
        searched(7)


def test_a_run_that_goes_on_takes_the_sizes_that_its_search_left(tmp_path) -> None:
    def made() -> Any:
        return make_method("s3pet", parameters=400, search_epochs=1, search_lr=0.05)

    whole, _ = fit(2, method=made)
    first, trainer = fit(1, method=made)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(2, str(tmp_path / "last.ckpt"), method=made)
    states = [module.model.state_dict() for module in (whole, second)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert 0 < count_parameters(second.model).inserted <= 400
