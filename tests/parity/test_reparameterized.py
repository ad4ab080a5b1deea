"""Reparameterised methods against Hugging Face PEFT, or golden tensors of the authors' code: same output, same gradients."""

import copy
from typing import Any

import pytest
import torch
from peft import (
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    MissConfig,
    PveraConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import Tensor, nn

from peft_core import PeftError, adapt
from peft_core.grafts.graft import Delta
from peft_core.grafts.shared import Reference, Shared
from peft_core.grafts.weight_changes import linear
from peft_core.kernels import kronecker_linear
from peft_core.methods.reparameterized.gralora import Granular
from peft_core.methods.reparameterized.hira import Proportional
from peft_core.methods.reparameterized.hra import Reflections
from peft_core.methods.reparameterized.lokr import LoKr
from peft_core.methods.reparameterized.miss import Blocks, Shards
from peft_core.methods.reparameterized.vera import VectorPair
from tests.tiny import MODELS

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


@pytest.mark.parametrize("hybrid", [0, 2])
def test_gralora_as_in_peft(hybrid: int):
    stock = stock_linear()
    theirs = inject(GraloraConfig(r=4, alpha=3, gralora_k=2, hybrid_r=hybrid, target_modules=["layer"]), stock_linear())
    delta = Granular(stock.weight, None, (OUT, IN), 4, 2, hybrid, 3 / (4 + hybrid), 0.0)
    names = {"down": "gralora_A.default", "up": "gralora_B.default"}
    if hybrid:
        names |= {"whole_down": "gralora_A_general.default.weight", "whole_up": "gralora_B_general.default.weight"}

    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
            turned = (
                parameter.mT if parameter.dim() == 3 else parameter
            )  # their tensors hold the rank last (A) and first (B)
            theirs.get_parameter(names[name]).copy_(turned)
    x = torch.randn(3, 5, IN, dtype=torch.float64, requires_grad=True)
    y, other = run(stock, delta, x), theirs(x)
    torch.testing.assert_close(y, other)
    g = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *delta.parameters()], g)
    peers = torch.autograd.grad(
        other, [x, *(theirs.get_parameter(names[name]) for name, _ in delta.named_parameters())], g
    )
    for one, peer in zip(ours, peers, strict=True):
        torch.testing.assert_close(one, peer.mT if one.shape != peer.shape else peer)
    torch.testing.assert_close(delta(stock.weight) - stock.weight, theirs.get_delta_weight("default"))


def test_hira_as_in_peft():
    stock = stock_linear()
    theirs = inject(HiraConfig(r=4, target_modules=["layer"]), stock_linear())
    names = {"A": "hira_A.default", "B": "hira_B.default"}
    same(stock, Proportional(stock.weight, None, 4, 1.0), theirs, names, torch.randn(3, 5, IN, dtype=torch.float64))


@pytest.mark.parametrize("convolves", [False, True])
def test_hra_as_in_peft(convolves: bool):
    torch.manual_seed(0)
    stock = nn.Conv2d(4, OUT, 3, padding=1).double().requires_grad_(False) if convolves else stock_linear()
    theirs = inject(HRAConfig(r=4, target_modules=["layer"]), copy.deepcopy(stock))
    delta = Reflections(stock.weight, None, 4)
    assert all(torch.equal(u[::2], u[1::2]) for u in (delta.u, theirs.hra_u.default.T))
    with torch.no_grad():
        delta.u.add_(torch.randn_like(delta.u) * 0.3)
        theirs.hra_u.default.copy_(delta.u.T)
    x = torch.randn(2, 4, 5, 5) if convolves else torch.randn(3, 5, IN)
    x = x.double().requires_grad_()
    y, other = run(stock, delta, x), theirs(x)
    torch.testing.assert_close(y, other)
    g = torch.randn_like(y)
    ours, peers = torch.autograd.grad(y, [x, delta.u], g), torch.autograd.grad(other, [x, theirs.hra_u.default], g)
    torch.testing.assert_close(ours, (peers[0], peers[1].T))
    # orthogonal: the outputs' weights keep their lengths
    torch.testing.assert_close(delta(stock.weight).flatten(1).norm(dim=1), stock.weight.flatten(1).norm(dim=1))


@pytest.mark.parametrize("form", ["shared", "shared-5", "mini", "bat"])
def test_miss_as_in_peft(form: str):
    rank = 5 if form == "shared-5" else 4
    init: Any = form if form in ("mini", "bat") else True
    stock = stock_linear()
    theirs = inject(MissConfig(r=rank, mini_r=6, init_weights=init, target_modules=["layer"]), stock_linear())
    delta: Delta = Blocks(stock.weight, None, rank) if form == "bat" else Shards(
        stock.weight, None, (OUT, IN), rank, 6 if form == "mini" else OUT
    )  # fmt: skip
    same(stock, delta, theirs, {"m": "miss_block.default"}, torch.randn(3, 5, IN, dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("gralora", {"rank": 6, "cuts": 4}, "4 cuts, which do not divide the rank, 6"),
        ("hra", {"rank": 3}, "must be even"),
        ("miss", {"rank": 5, "form": "bat"}, "does not cut"),
        ("miss", {"rank": 4, "form": "mini", "mini": 5}, "does not divide the 48 outputs"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(method: str, settings: dict[str, Any], words: str):
    with pytest.raises(PeftError, match=words):
        adapt(MODELS["vit"].model(), method, **settings)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [[None], [(0, 8), (16, 24)]])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("skinny", [False, True])
def test_the_fast_kronecker_linear_equals_the_plain_one(groups: int, rows: list, few: bool, skinny: bool, monkeypatch):
    monkeypatch.setattr(kronecker_linear, "merging_pays", lambda places, weight, factors: not few)
    monkeypatch.setattr(kronecker_linear, "skinny_pays", lambda w1, w2: skinny)
    stock = stock_linear()
    x = torch.randn(3, 5, IN, dtype=torch.float64, requires_grad=True)
    deltas = [LoKr(rank=1, alpha=3.0, groups=groups).change(stock.weight, each, 1) for each in rows]
    for parameter in (p for delta in deltas for p in delta.parameters()):
        nn.init.normal_(parameter)
    leaves = [x, *(p for delta in deltas for p in delta.parameters())]
    fast = linear(x, stock.weight, stock.bias, deltas)  # type: ignore[arg-type]
    dense = stock.weight
    for delta, each in zip(deltas, rows, strict=True):
        w1, w2 = delta.factors()
        change = delta.scale * sum(torch.kron(one, two) for one, two in zip(w1, w2, strict=True))
        start, stop = each or (0, OUT)
        dense = torch.cat((dense[:start], dense[start:stop] + change, dense[stop:]))
    plain = nn.functional.linear(x, dense, stock.bias)
    torch.testing.assert_close(fast, plain)
    g = torch.randn_like(fast)
    ours = torch.autograd.grad(fast, leaves, g, create_graph=True)
    theirs = torch.autograd.grad(plain, leaves, g, create_graph=True)
    torch.testing.assert_close(ours, theirs)
    twice = [torch.autograd.grad(sum(d.square().sum() for d in found), leaves) for found in (ours, theirs)]
    torch.testing.assert_close(*twice)
    torch.testing.assert_close(torch.autograd.grad(linear(x, stock.weight, stock.bias, deltas), leaves, g), ours)  # type: ignore[arg-type]


def test_a_split_that_does_not_divide_is_refused():
    vit = MODELS["vit"].model()
    with pytest.raises(PeftError, match="shape 5, 4, which does not divide the 48 outputs and 48 inputs"):
        adapt(vit, "krona", shape=(5, 4))
    with pytest.raises(PeftError, match="the factor 0 splits nothing"):
        adapt(vit, "lokr", factor=0)
