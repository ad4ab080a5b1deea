"""Reparameterised methods against Hugging Face PEFT: same parameters, same output, same gradients, in float64 where it lets."""

from typing import Any

import pytest
import torch
from peft import PveraConfig, VeraConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from peft_core.grafts.graft import Delta
from peft_core.grafts.shared import Reference, Shared
from peft_core.grafts.weight_changes import linear
from peft_core.methods.reparameterized.vera import VectorPair

OUT, IN = 24, 16


def inject(config: Any, stock: nn.Module) -> nn.Module:
    """Their layer around a copy of this one."""
    net = nn.Module()
    net.layer = stock
    inject_adapter_in_model(config, net)
    return net.layer.double()


def same(stock: nn.Module, delta: Delta, theirs: nn.Module, names: dict[str, str], x: Tensor) -> None:
    """Ours and theirs give the same output and gradients; names: our parameter -> their path."""
    peers = {name: theirs.get_parameter(path) for name, path in names.items()}
    assert {id(p) for p in theirs.parameters() if p.requires_grad} == {id(p) for p in peers.values()}
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            peers[name].copy_(parameter.add_(torch.randn_like(parameter) * 0.3).view_as(peers[name]))
    x.requires_grad_()
    torch.manual_seed(5)
    y = run(stock, delta, x)
    torch.manual_seed(5)
    other = theirs(x)
    torch.testing.assert_close(y, other)
    g = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *(delta.get_parameter(name) for name in names)], g)
    for one, peer in zip(ours, torch.autograd.grad(other, [x, *peers.values()], g), strict=True):
        torch.testing.assert_close(one, peer.view_as(one))


def run(stock: Any, delta: Delta, x: Tensor) -> Tensor:
    if isinstance(stock, nn.Linear):
        return linear(x, stock.weight, stock.bias, [delta])
    return stock._conv_forward(x, delta(stock.weight), delta.bias(stock.bias))


def stock_linear(inner: int = IN) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inner, OUT).double().requires_grad_(False)


def given(value: Tensor) -> Reference:
    return Reference(Shared(value))


@pytest.mark.parametrize(("drawn", "training"), [(False, True), (True, False), (True, True)])
def test_vera_and_pvera_as_in_peft(drawn: bool, training: bool):
    kind, prefix = (PveraConfig, "pvera") if drawn else (VeraConfig, "vera")
    net = nn.Sequential()
    net.add_module("layer", stock_linear())
    theirs = get_peft_model(net, kind(r=4, target_modules=["layer"])).double().base_model.model.layer.train(training)
    pair = (given(getattr(theirs, f"{prefix}_{name}").default.clone()) for name in "AB")
    stock = stock_linear()
    delta = VectorPair(stock.weight, None, 8 if drawn else 4, 0.1, *pair, drawn).train(training)
    assert torch.equal(delta.d.float(), theirs.get_parameter(f"{prefix}_lambda_d.default").float())
    names = {"d": f"{prefix}_lambda_d.default", "b": f"{prefix}_lambda_b.default"}
    same(stock, delta, theirs, names, torch.randn(3, 5, IN, dtype=torch.float64))
    merged = nn.functional.linear(x := torch.randn(4, IN, dtype=torch.float64), delta(stock.weight), stock.bias)
    torch.testing.assert_close(theirs.eval()(x), merged)
