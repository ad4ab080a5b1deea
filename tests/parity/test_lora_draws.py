"""LoRA's relatives that unload, drop out or search ranks, against their formulas in float64."""

import copy
from typing import Any

import pytest
import torch
from peft_data.batches import Batch
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle, load_adapter, save_adapter
from peft_core.grafts.calls import state
from peft_core.kernels.lowrank_linear import lowrank_linear
from peft_core.methods.reparameterized.auto_lora import Searched
from peft_core.methods.reparameterized.lora_dropout import Dropped
from peft_core.methods.reparameterized.periodic_lora import Unloading
from peft_core.parts.chance import chance
from peft_core.parts.selection.bilevel import unrolled
from peft_core.testing import loss
from tests.parity.test_lora_family import pictures
from tests.parity.test_lora_lifecycles import changes
from tests.tiny import MODELS
from vision_peft.classify import Classifier
from vision_peft.tasks.classify import Classes

STEPS = 8


@pytest.mark.parametrize("momentum", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(24, 10), (10, 24)])
def test_periodic_lora_sums_what_it_unloads(momentum: float, shape: tuple[int, int]):
    torch.manual_seed(0)
    weight = torch.randn(*shape, dtype=torch.float64)
    change, base = Unloading(weight, None, 3, 1.5, 0), weight.clone()
    for step in range(6):  # ranks of 18 in a weight of 10
        with torch.no_grad():
            change.A.add_(torch.randn_like(change.A))
            change.B.add_(torch.randn_like(change.B))
        base = base + 1.5 * (momentum or 1.0) * change.B.detach() @ change.A.detach()
        before = change(weight).detach()
        change.unload(momentum, chance(0, step))
        torch.testing.assert_close(base + 1.5 * change.B @ change.A, change(weight))
        torch.testing.assert_close(change(weight), before)  # the function does not jump
    assert len(change.D) == change.U.shape[1] == 10


# ---- LoRA Dropout --------------------------------------------------------------------------------------------------


def test_lora_dropout_masks_inputs_and_outputs():
    torch.manual_seed(0)
    weight = torch.randn(24, 16, dtype=torch.float64)
    change: Any = Dropped(weight, None, 3, 1.5, 0.5, 4, chance(0, 0))
    nn.init.normal_(change.B)
    rng = torch.get_rng_state()
    dropped = (change(weight) - weight) / 1.5
    torch.set_rng_state(rng)
    inputs, outputs = torch.rand(16) >= 0.5, torch.rand(24) >= 0.5
    torch.testing.assert_close(
        dropped, torch.diag(outputs.double()) @ change.B @ change.A @ torch.diag(inputs.double())
    )
    assert not torch.equal(change(weight), change(weight))
    change.eval()
    assert torch.equal(change(weight), change(weight))
    assert change.inputs.shape == (4, 16) and len({tuple(m.tolist()) for m in change.inputs}) == 4


def test_lora_dropout_answers_with_the_mean_of_its_draws():
    model: Any = adapt(MODELS["vit"].model().eval(), "lora_dropout", rank=2, instances=3, targets=("q", "fc1"))
    for change in changes(model):
        nn.init.normal_(change.B)
    x, alone = pictures()[0][:4], []
    for number in range(3):
        state()["lora_dropout/instance"] = number
        alone.append(model.forward(x))  # without the model's hooks
    del state()["lora_dropout/instance"]
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(model(x), torch.stack(alone).mean(0))
    assert torch.equal(model(x), model(x))


def test_a_step_takes_the_mean_loss_of_several_draws():
    model = adapt(MODELS["vit"].model().train(), "lora_dropout", rank=2, instances=3)
    for change in changes(model):
        nn.init.normal_(change.B)
    classifier, x = (
        Classifier(model, Classes("abcde"), 10, (0.0,) * 3, (1.0,) * 3),
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
    )
    classifier.chance = torch.Generator()
    batch = Batch(x, torch.tensor([0, 1, 2, 3]), torch.arange(4))
    torch.manual_seed(1)
    found = classifier.training_step(batch, 0)
    torch.manual_seed(1)
    expected = torch.stack([torch.nn.functional.cross_entropy(classifier(x), batch.labels) for _ in range(3)])
    assert lifecycle.instances(model) == 3 and expected.std() > 0
    torch.testing.assert_close(found, expected.mean())


# ---- AutoLoRA ------------------------------------------------------------------------------------------------------


def test_auto_lora_follows_the_loss_through_a_step():
    """The gradient of α ↦ L_val(w − ξ ∇_w L_train(w, α), α), against differences in float64."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    change: Any = Searched(weight, None, 3, 1.5)
    nn.init.normal_(change.B)
    alpha = torch.randn(3, dtype=torch.float64, requires_grad=True)
    change.coefficients = alpha
    batches = [torch.randn(4, 5, dtype=torch.float64) for _ in range(2)]

    def at(batch: Tensor, change: Any = change) -> Tensor:
        return lowrank_linear(batch, weight, None, [change]).tanh().pow(2).sum()

    weights = [change.A, change.B]

    def ahead(value: Tensor) -> float:
        change.coefficients = None  # no module's own
        twin = copy.deepcopy(change)
        twin.coefficients = value
        steps = torch.autograd.grad(at(batches[0], twin), [twin.A, twin.B])
        with torch.no_grad():
            for p, g in zip((twin.A, twin.B), steps, strict=True):
                p -= 0.1 * g
            return at(batches[1], twin).item()

    gradients = torch.autograd.grad(at(batches[0]), weights, create_graph=True)
    before = [p.detach().clone() for p in weights]
    (found,) = unrolled((at(batches[1]) for _ in range(1)), weights, [alpha], gradients, 0.1)
    assert all(torch.equal(p, value) for p, value in zip(weights, before, strict=True))
    for i in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[i] = 1e-5
        slope = (ahead(alpha.detach() + nudge) - ahead(alpha.detach() - nudge)) / 2e-5
        assert found[i].item() == pytest.approx(slope, rel=1e-4)


class Batches:
    """Losses that can be gone through several times."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __iter__(self):
        return (loss(self.model(x[:4])) for x in pictures() * 2)


def test_auto_lora_searches_then_trains_anew(tmp_path):
    model = adapt(MODELS["vit"].model().train(), "auto_lora", rank=3, search_epochs=3, search_lr=0.05)
    with pytest.raises(PeftError, match="searches its ranks in data: call peft_core.lifecycle.prepare"):
        lifecycle.after_step(model, 0.5)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    lifecycle.prepare(model, Batches(model))
    for key, value in model.state_dict().items():
        assert key.endswith("keep") or torch.equal(value, start[key]), key
    kept = [int(change.keep.sum()) for change in changes(model)]
    assert all(1 <= rank < 3 for rank in kept) and not any(p.grad is not None for p in model.parameters())
    lifecycle.after_step(model, 0.5)
    with torch.no_grad():
        for change in changes(model):
            nn.init.normal_(change.B)
    y = MODELS["vit"](model.eval())
    lifecycle.finish(model)
    assert [len(change.A) for change in changes(model)] == kept
    torch.testing.assert_close(MODELS["vit"](model), y)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(MODELS["vit"](load_adapter(MODELS["vit"].model().eval(), tmp_path)), y)
