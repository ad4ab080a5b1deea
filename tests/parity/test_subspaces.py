"""Methods of shared factors, projections and spectra against golden tensors of the authors' code, or their formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_core import PeftError, adapt, count_parameters, load_adapter, save_adapter
from peft_core.grafts.weight_changes import linear
from peft_core.lifecycle import finish, parameter_groups
from peft_core.methods.reparameterized.kadaptation import Terms
from peft_core.methods.reparameterized.said import Fastfood, walsh_hadamard
from peft_core.methods.reparameterized.svdiff import Spectrum, decompose
from peft_core.parts.hypercomplex import HypercomplexBottleneck
from peft_core.testing import perturb
from tests.parity.golden import golden, values
from tests.parity.test_reparameterized import given
from tests.tiny import MODELS

OUT, IN = 24, 16


def test_an_adapter_of_compacter_is_the_authors():
    """rabeehk/compacter e123daa; its W_left, W_right are s, t, its shared phm_rule A."""
    there, rule = golden("compacter"), nn.Parameter(values("A", (4, 4, 4)))
    options: dict[str, Any] = dict(dtype=torch.float64)
    adapter = HypercomplexBottleneck(16, 8, given(rule), rank=2, activation="gelu_tanh", zero=False, options=options)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.copy_(values(name, parameter.shape))
    y = adapter(values("x", (3, 5, 16)))
    torch.testing.assert_close(y, there["y"])
    y.backward(values("g", y.shape))
    for name, parameter in (("A", rule), *adapter.named_parameters()):
        torch.testing.assert_close(parameter.grad, there[f"grad.{name}"])


def test_a_change_of_kadaptation_is_the_authors():
    """eric-ai-lab/PEViT be6fb43, `adapter_forward` of q without dropout: adapter1_left, _right are u, v, phm_rule l, m, b c."""
    there, stock = golden("kadaptation"), nn.Linear(16, 16).double().requires_grad_(False)
    shared = {
        name: nn.Parameter(values(name, shape)) for name, shape in (("l", (4, 4, 1)), ("m", (4, 1, 4)), ("c", (16,)))
    }
    left, right = (
        given(nn.Parameter(shared["l"].detach().squeeze(2))),
        given(nn.Parameter(shared["m"].detach().squeeze(1))),
    )
    delta = Terms(stock.weight, None, (16, 16), left, right, given(shared["c"]), 160.0, 0.0)
    with torch.no_grad():
        delta.u.copy_(values("u", (4, 4, 1)).squeeze(2))
        delta.v.copy_(values("v", (4, 1, 4)).squeeze(1))
    leaves = {"u": delta.u, "v": delta.v, "l": left(), "m": right(), "c": shared["c"]}
    x = values("x", (3, 5, 16))
    beside = delta.on_input(x, nn.functional.linear)
    within = linear(x, stock.weight, stock.bias, [delta]) - stock(x)
    for y in (beside, within):
        torch.testing.assert_close(y, there["y"])
        found = torch.autograd.grad(y, list(leaves.values()), values("g", y.shape))
        for name, grad in zip(leaves, found, strict=True):
            torch.testing.assert_close(grad, there[f"grad.{name}"])


def test_a_projection_of_said_is_the_authors():
    """rabeehk/compacter e123daa, `fastfood_torched` in float64, whose backward divides each transform by √ of its size, 64."""
    there, z = golden("said"), values("z", (10,)).requires_grad_()
    project = Fastfood(48, 10, torch.Generator(), torch.device("cpu"))
    for name, value in (("signs", (values("signs", (64,)) > 0) * 2 - 1), ("order", values("order", (64,)).argsort())):
        setattr(project, name, value)
    project.gauss = values("gauss", (64,))
    torch.testing.assert_close(project(z), there["f"])
    (project(z) * values("g", (48,))).sum().backward()
    torch.testing.assert_close(z.grad, there["grad.z"] * 64)
    x = torch.randn(128, dtype=torch.float64)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), 128 * x)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (8, 4, 3, 3), (10,)])
def test_svdiff_is_its_formula(shape: tuple[int, ...]):
    """mkshing/svdiff-pytorch a78f69e: U diag(relu(S + s·delta)) Vh, W flattened to (out, in·kh·kw), a norm's to (1, n)."""
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    flat = weight.view(1, -1) if len(shape) == 1 else weight.flatten(1)
    change = Spectrum(weight, None, 3.0)
    nn.init.normal_(change.delta, std=1.0)  # some values fall below zero
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    other = change.delta.detach().clone().requires_grad_()
    expected = (u @ torch.diag(torch.relu(s + 3.0 * other)) @ v).view(shape)
    torch.testing.assert_close(change(weight), expected)
    g = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(change(weight), change.delta, g), torch.autograd.grad(expected, other, g)
    )


def test_svdiff_finds_the_same_directions_by_both_ways():
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(8, 8).double())[0], torch.linalg.qr(torch.randn(12, 8).double())[0]
    for smallest in (1e-2, 1e-8):  # by Gram matrix, by SVD
        sigma = torch.linspace(1, 0.3, 8).double()
        sigma[-1] = smallest
        found = decompose((u * sigma) @ v.t())
        torch.testing.assert_close(found[1], sigma, rtol=1e-6, atol=0)
        for index in range(8):
            ours = torch.outer(found[0][:, index], found[2][index])
            torch.testing.assert_close(ours, torch.outer(u[:, index], v[:, index]), rtol=1e-6, atol=1e-6)
    with pytest.raises(PeftError, match="of no full rank"):
        model = MODELS["vit"].model()
        nn.init.zeros_(model.blocks[0].mlp.fc1.weight)
        adapt(model, "svdiff")


def test_svdiff_takes_the_directions_of_a_stock_checkpoint_that_is_loaded():
    model, other = adapt(MODELS["vit"].model(), "svdiff"), MODELS["vit"].model()
    with torch.no_grad():
        for block in other.blocks:
            block.mlp.fc1.weight.mul_(0.5).add_(torch.randn_like(block.mlp.fc1.weight), alpha=0.1)
        model.blocks[0].mlp.fc1.peft.svdiff.fc1.delta.fill_(0.1)
    model.load_state_dict(other.state_dict(), strict=False)
    change, weight = model.blocks[0].mlp.fc1.peft.svdiff.fc1, other.blocks[0].mlp.fc1.weight
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(change(weight), ((u * (s + 0.1)) @ v).float(), rtol=1e-4, atol=1e-5)
    kept = change.u.clone()
    model.load_state_dict({key: value for key, value in model.state_dict().items() if "peft" in key}, strict=False)
    assert torch.equal(change.u, kept)


def test_shifts_of_norms_learn_at_a_thousandth_of_the_rate():
    model = adapt(MODELS["vit"].model(), "svdiff")
    groups = parameter_groups(model, 1e-3)
    assert groups[0]["lr"] == 1e-6 and {p.numel() for p in groups[0]["params"]} == {1}
    assert all(group["lr"] == 1e-3 for group in groups[1:])


def test_hiwi_keeps_the_new_bias_alone(tmp_path: Path):
    tiny = MODELS["vit"]
    model = adapt(tiny.model().eval(), "hiwi", rank=2)
    perturb(model)
    y, trained = tiny(model).detach(), count_parameters(model).inserted
    finish(model)
    assert torch.allclose(tiny(model), y, atol=1e-6)
    assert count_parameters(model).inserted == 3 * (48 + 192) < trained
    save_adapter(model, tmp_path)
    again = load_adapter(tiny.model().eval(), tmp_path)
    assert torch.equal(tiny(again), tiny(model)) and not hasattr(again.blocks[0].mlp.fc1.peft.hiwi.fc1, "d")
    finish(again)  # nothing is left to fold
    assert torch.equal(tiny(again), tiny(model))
    bare = tiny.model()
    bare.blocks[1].mlp.fc2.bias = None
    with pytest.raises(PeftError, match=r"fc2 at blocks.1.mlp.fc2: it has no bias"):
        adapt(bare, "hiwi")
