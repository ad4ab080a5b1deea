"""GaLore and MeZO in plain loops, on full and adapted models: what they keep, and that a stopped run goes on the same."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from peft_core import PeftError, adapt
from peft_core.counting import kept_bytes
from peft_core.lifecycle import parameter_groups
from peft_core.optimizers.galore import GaLore
from peft_core.optimizers.mezo import MeZO

X, LABELS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])


def model(method: str) -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=2, num_classes=3
    )
    return adapt(vit, method).eval()


def optimizer_of(kind: type, net: nn.Module) -> torch.optim.Optimizer:
    if kind is MeZO:
        return MeZO(parameter_groups(net, 3e-3, 0.0), seed=4)
    return GaLore(parameter_groups(net, 1e-3, 0.01), rank=2, gap=3, scale=1.0)


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    def closure() -> torch.Tensor:
        loss = F.cross_entropy(net(X), LABELS)
        if isinstance(optimizer, GaLore):
            optimizer.zero_grad()
            loss.backward()
        else:
            assert not loss.requires_grad
        return loss.detach()

    return float(optimizer.step(closure))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", [GaLore, MeZO])
def test_learns_and_goes_on_from_a_checkpoint(kind: type, method: str) -> None:
    net = model(method)
    optimizer = optimizer_of(kind, net)
    losses = [step(net, optimizer) for _ in range(4)]
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    losses += [step(net, optimizer) for _ in range(16)]
    assert losses[-1] < losses[0]
    other = model(method)
    other.load_state_dict(saved[0])
    again = optimizer_of(kind, other)
    again.load_state_dict(saved[1])
    assert [step(other, again) for _ in range(16)] == losses[4:]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_galore_keeps_a_subspace_of_matrices() -> None:
    net = model("full")
    optimizer = optimizer_of(GaLore, net)
    step(net, optimizer)
    weight = net.get_submodule("blocks.0.mlp.fc1").weight
    state = optimizer.state[weight]
    assert state["basis"].shape == (2, 32) and state["exp_avg"].shape == state["exp_avg_sq"].shape == (128, 2)
    basis = state["basis"].clone()
    step(net, optimizer)
    step(net, optimizer)
    assert torch.equal(state["basis"], basis)
    step(net, optimizer)
    assert not torch.equal(state["basis"], basis)


def test_galore_takes_a_convolution_as_a_matrix() -> None:
    conv, gradient = nn.Conv2d(4, 6, 3), torch.randn(6, 4, 3, 3)
    matrix = nn.Parameter(conv.weight.detach().flatten(1).clone())
    conv.weight.grad, matrix.grad = gradient, gradient.flatten(1)
    for parameter in (conv.weight, matrix):
        GaLore([parameter], lr=0.1, rank=2).step()
    assert torch.equal(conv.weight.flatten(1), matrix)


def test_mezo_keeps_nothing_for_backward() -> None:
    net = model("full")
    optimizer = optimizer_of(MeZO, net)
    assert kept_bytes(lambda: torch.tensor(step(net, optimizer)), net) == 0 and not optimizer.state


def test_refusals() -> None:
    weights = [nn.Parameter(torch.ones(3, 3))]
    with pytest.raises(PeftError, match="eps must be above 0"):
        MeZO(weights, eps=0.0)
    with pytest.raises(PeftError, match="call step\\(closure\\)"):
        MeZO(weights).step()
    with pytest.raises(PeftError, match="must give the loss"):
        MeZO(weights).step(lambda: None)
    with pytest.raises(PeftError, match="gap of 1 step or more"):
        GaLore(weights, gap=0)
