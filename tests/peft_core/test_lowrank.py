"""The fast linears equal their plain formulas, in outputs and in every gradient, and keep nothing they need not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from peft_core import adapt
from peft_core.counting import kept_bytes
from peft_core.grafts.classes import swap_class
from peft_core.kernels.column_sums import column_sums, in_pieces
from peft_core.kernels.lowrank_linear import lowrank_linear, merging_pays
from peft_core.kernels.rebuild import Recipe, kept_for, tag
from peft_core.kernels.twice import SMALL
from peft_core.parts.lowrank import LowRank
from peft_core.parts.scale_shift import ScaleShift, scale_shift_linear
from tests.tiny import MODELS, pictures, vit


def parts(weight, layout):
    """LowRank changes of random, non-zero factors on the given rows."""
    deltas = [LowRank(weight, rows, rank, scale) for rows, rank, scale in layout]
    for delta in deltas:
        nn.init.normal_(delta.B, std=0.3)
    return deltas


@torch.no_grad()
def test_sums_over_rows_by_pieces_are_those_of_all_at_once():
    g, y = torch.randn(2, 700, 400, dtype=torch.float64)
    assert len(list(in_pieces(g, y))) > 2
    for found, expected in zip(column_sums(g, y), (g.sum(0), (g * y).sum(0)), strict=True):
        torch.testing.assert_close(found, expected)


LAYOUTS = {
    "whole": [(None, 3, 0.7)],
    "q and v rows": [((0, 4), 2, 1.0), ((8, 12), 3, 2.5)],
    "two on the same rows": [((2, 6), 2, 0.5), ((4, 12), 1, 1.5), (None, 2, 1.0)],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [5, 50, 500])  # added, merged, by pieces
def test_lowrank_linear_equals_the_plain_formula(layout, bias, tokens):
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 6, dtype=torch.float64)
    assert merging_pays(2 * tokens, weight) == (tokens > 5)
    b = torch.randn(12, dtype=torch.float64, requires_grad=True) if bias else None
    deltas = parts(weight, layout)

    def plain(x, b, *factors):
        y = F.linear(x, weight, b)
        for (rows, _, scale), a, up in zip(layout, factors[::2], factors[1::2], strict=True):
            change = scale * F.linear(F.linear(x, a), up)
            y = y + (change if rows is None else F.pad(change, (rows[0], 12 - rows[1])))
        return y

    factors = [factor for delta in deltas for factor in (delta.A, delta.B)]
    leaves = [leaf for leaf in (x, b, *factors) if leaf is not None]
    y = lowrank_linear(x, weight, b, deltas)
    expected = plain(x, b, *factors)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    for one, other in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("tokens", [3, 25])
def test_lowrank_linear_gradcheck(layout, tokens):
    torch.manual_seed(0)
    x = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True)
    deltas = parts(weight.detach(), layout)
    factors = [factor for delta in deltas for factor in (delta.A, delta.B)]

    def run(x, weight, bias, *factors):
        for delta, a, b in zip(deltas, factors[::2], factors[1::2], strict=True):
            delta.A, delta.B = nn.Parameter(a), nn.Parameter(b)
            delta._parameters.update(A=a, B=b)
        return lowrank_linear(x, weight, bias, deltas)

    assert torch.autograd.gradcheck(run, (x, weight, bias, *factors))


@pytest.mark.parametrize("tiny_gamma", [False, True])
def test_scale_shift_linear_equals_the_plain_formula_also_near_zero(tiny_gamma):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    delta = ScaleShift(weight, None, 0.5)
    if tiny_gamma:
        with torch.no_grad():
            delta.gamma[2], delta.gamma[3] = 0.0, SMALL / 10
    y = scale_shift_linear(x, weight, bias, [delta])
    expected = F.linear(x, weight, bias) * delta.gamma + delta.beta
    torch.testing.assert_close(y, expected)
    leaves, g = (x, delta.gamma, delta.beta), torch.randn_like(y)
    mine, plain = (torch.autograd.grad(out, leaves, g) for out in (y, expected))
    for one, other in zip(mine, plain, strict=True):
        # sums run in float32, so that half-precision ones keep their digits
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def gradients(model, x, wrap=lambda f: f):
    model.zero_grad(set_to_none=True)
    wrap(model)(x).square().sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def big_lora(method="lora", **hyper):
    torch.manual_seed(0)
    model = adapt(vit(embed_dim=48, depth=3)(), method, **hyper).train()
    for key, p in model.named_parameters():
        if key.endswith(".B"):
            nn.init.normal_(p, std=0.1)
    return model


ALL = dict(rank=4, targets=("qkv", "proj", "fc1", "fc2"))


def test_rebuilt_inputs_give_the_same_bits(monkeypatch):
    model, x = big_lora(**ALL), pictures()()["x"]
    rebuilt = gradients(model, x)
    monkeypatch.setattr("peft_core.kernels.lowrank_linear.kept_for", lambda x: (None, (x,)))
    kept = gradients(model, x)
    assert rebuilt.keys() == kept.keys() and all(torch.equal(rebuilt[key], kept[key]) for key in kept)


def test_lora_on_every_linear_keeps_no_more_than_the_frozen_model(monkeypatch):
    model, x = big_lora(**ALL), pictures()()["x"]
    frozen = adapt(vit(embed_dim=48, depth=3)(), "linear").train()
    frozen.patch_embed.register_forward_hook(lambda module, args, y: y.requires_grad_())
    floor = kept_bytes(lambda: frozen(x), frozen)
    assert kept_bytes(lambda: model(x), model) <= 1.05 * floor
    monkeypatch.setattr("peft_core.kernels.lowrank_linear.kept_for", lambda x: (None, (x,)))
    assert kept_bytes(lambda: model(x), model) > 1.4 * floor


def test_an_input_changed_in_place_is_kept_as_it_was_read():
    model, x = big_lora(**ALL), pictures()()["x"]
    model.blocks[1].norm2.register_forward_hook(lambda module, args, y: y.mul_(2.0))
    rebuilt = gradients(model, x)
    plain = big_lora(**ALL)
    plain.blocks[1].norm2.register_forward_hook(lambda module, args, y: y * 2.0)
    for key, grad in gradients(plain, x).items():
        torch.testing.assert_close(rebuilt[key], grad)


@pytest.mark.parametrize("method, hyper", [("lora", ALL), ("ssf", {})])
def test_right_under_activation_checkpointing(method, hyper):
    model, x = big_lora(method, **hyper), pictures()()["x"]
    plain = gradients(model, x)
    model.set_grad_checkpointing(True)
    for key, grad in gradients(model, x).items():
        torch.testing.assert_close(grad, plain[key])
    model.set_grad_checkpointing(False)
    whole = gradients(model, x, lambda model: lambda x: checkpoint(model, x, use_reentrant=False))
    assert all(torch.allclose(grad, plain[key]) for key, grad in whole.items())


@pytest.mark.parametrize("method, hyper", [("lora", ALL), ("ssf", {})])
def test_bf16_autocast_stays_near_float32(method, hyper):
    model, x = big_lora(method, **hyper), pictures()()["x"]
    exact = gradients(model, x)

    def under_autocast(model):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return model(x).float()

        return run

    rough = gradients(model, x, under_autocast)
    for key, grad in exact.items():
        assert rough[key].dtype == grad.dtype
        assert (rough[key] - grad).norm() <= 0.1 * grad.norm() + 1e-3, key


def test_dropout_takes_the_plain_path_in_training_only():
    model, x = big_lora(rank=4, targets=("qkv",), dropout=0.5), pictures()()["x"]
    torch.manual_seed(0)
    one = model(x)
    torch.manual_seed(1)
    assert not torch.equal(one, model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    tiny = MODELS["clip_image"]
    tower = adapt(tiny.model(), "lora", rank=2, targets=("q", "v", "proj"), dropout=0.5).train()
    tiny(tower).sum().backward()
    assert all(p.grad is not None for p in tower.parameters() if p.requires_grad)


class Gated(nn.Module):
    """Norm, q, k and v reading the same, a product of two halves, and a layer that reads the product."""

    def __init__(self, dim=16):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x):
        y = self.norm(x)
        x = x + (self.q(y) * self.k(y)).tanh() + self.v(y)
        a, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(a * F.gelu(gate))


def gated():
    torch.manual_seed(0)
    model = Gated()
    for layer in (model.q, model.k, model.v, model.fc1, model.fc2):
        delta = LowRank(layer.weight, None, 2, 1.0)
        nn.init.normal_(delta.B, std=0.3)
        swap_class(layer)
        layer.add_module("peft", nn.ModuleDict({"lora": nn.ModuleDict({"weight": delta})}))
    model.norm.register_forward_hook(tag, prepend=True)
    return model


def all_gradients(model, x, times=1):
    x = x.clone().requires_grad_()
    loss = model(x).square().sum()
    for again in reversed(range(times)):
        found = torch.autograd.grad(loss, [x, *model.parameters()], retain_graph=bool(again), allow_unused=True)
    return [grad for grad in found if grad is not None]


@pytest.mark.parametrize("times", [1, 2])
def test_a_norm_made_again_for_three_readers_and_a_product_give_the_same_bits(monkeypatch, times):
    model, x = gated(), torch.randn(2, 40, 16)
    rebuilt = all_gradients(model, x, times)
    made = []
    monkeypatch.setattr(Recipe, "again", lambda self, kept, stock=Recipe.again: made.append(1) or stock(self, kept))
    all_gradients(model, x)
    assert len(made) == 2, "one norm for three readers, one product"
    monkeypatch.setattr("peft_core.kernels.lowrank_linear.kept_for", lambda x: (None, (x,)))
    kept = all_gradients(model, x)
    assert all(torch.equal(one, other) for one, other in zip(rebuilt, kept, strict=True))


def test_a_product_changed_in_place_or_hooked_is_kept():
    a, b = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    assert kept_for(a * b)[0] is not None
    assert kept_for((a * b).mul_(2.0))[0] is None
    assert kept_for(a * torch.randn(4, requires_grad=True))[0] is None, "one factor is not of the product's shape"
    with torch.autograd.graph.save_on_cpu():
        assert kept_for(a * b)[0] is None
