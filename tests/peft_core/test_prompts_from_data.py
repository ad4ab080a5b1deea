"""Prompts that pictures, other runs or positions make, against the papers' equations written out block by block."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_core import PeftError, adapt, lifecycle, save_adapter
from peft_core.attach import grafts_named, record_of
from peft_core.parts.tokens.source import nearness
from peft_core.testing import loss
from tests.peft_core.test_made_prompts import DEPTH, DIM, X, adapted, joined, split, vit, walk


@pytest.mark.parametrize("phm", [None, 4])
def test_idpg_adds_what_each_blocks_class_token_makes(phm: int | None) -> None:
    model, stock, grafts = adapted("idpg", tokens=2, hidden=4, phm=phm)
    g = grafts["/shared_generator"].value
    if phm is None:
        down, bias, up = g.down.weight.t(), g.down.bias, g.up.weight.t()
    else:  # as the authors' code sums torch.kron
        down = sum(torch.kron(a, b) for a, b in zip(g.A1, g.B1, strict=True))
        up, bias = sum(torch.kron(a, b) for a, b in zip(g.A2, g.B2, strict=True)), g.bias
    own = [grafts["blocks.0/tokens"].tokens, *(grafts[f"blocks.{i}/generated"].values for i in range(1, DEPTH))]
    tokens = torch.zeros(3, 2, DIM, dtype=torch.float64)

    def block(index: int, x: Tensor) -> Tensor:
        nonlocal tokens
        state = x.mean(1) if index == 0 else x[:, 0]
        made = F.gelu(state @ down + bias) @ up + own[index].bias
        x, tokens = split(stock.blocks[index](joined(x, tokens + made.view(3, 2, DIM))), 2)
        return x

    torch.testing.assert_close(model(X), walk(stock, block))


def test_idpgs_terms_divide_its_sizes() -> None:
    with pytest.raises(PeftError, match="3 Kronecker terms do not divide 16, 16 and 80 features"):
        adapt(vit(), "idpg", phm=3)


def test_dept_moves_positions_and_has_two_rates() -> None:
    model, stock, grafts = adapted("dept", tokens=2, rank=3, alpha=5.0)
    change, prompts = grafts["blocks.0/positions"], grafts["blocks.0/tokens"].tokens
    with torch.no_grad():
        stock.pos_embed += 5 / 3**0.5 * change.A @ change.B
    deep = adapt(stock, "vpt", tokens=2).eval()
    (given,) = [g.tokens for _, _, g in grafts_named(deep, "vpt") if g.tokens is not None]
    with torch.no_grad():
        given.copy_(prompts)
    torch.testing.assert_close(model(X), deep(X))
    rates = {id(p): group["lr"] for group in lifecycle.parameter_groups(model, 0.1) for p in group["params"]}
    assert rates.pop(id(prompts)) == pytest.approx(6.0) and set(rates.values()) == {0.1}
    with pytest.raises(PeftError, match="dept was made for 17 tokens and 26 came"):
        adapt(vit(dynamic_img_size=True), "dept")(torch.zeros(1, 3, 20, 20, dtype=torch.float64))


def test_apt_weighs_each_layers_prefix() -> None:
    model, stock, grafts = adapted("apt", tokens=2)

    def block(index: int, x: Tensor) -> Tensor:
        part, make = stock.blocks[index], grafts[f"blocks.{index}.attn/keys_values"].make
        y = part.norm1(x)
        weight = make.layer * torch.sigmoid(y[:, 0] @ make.gate.weight.t())[..., None]
        q, k, v = part.attn.qkv(y).chunk(3, -1)
        k, v = (torch.cat((weight * p, t), 1) for p, t in zip(make.make.values, (k, v), strict=True))
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
        heads = ((q @ k.transpose(-2, -1)) * part.attn.scale).softmax(-1) @ v
        x = x + part.attn.proj(heads.transpose(1, 2).flatten(2))
        return x + part.mlp(part.norm2(x))

    torch.testing.assert_close(model(X), walk(stock, block))


@pytest.mark.parametrize("kind", ["noise", "mask"])
def test_half_of_the_samples_are_perturbed_in_training_alone(kind: Any) -> None:
    model = adapt(vit(), "ptp", tokens=2, kind=kind, noise=0.5, rate=0.5)
    graft = model.blocks[0].peft.ptp.perturbed
    x = torch.randn(400, 17, DIM, dtype=torch.float64) * 3
    y = graft.before(x)
    assert torch.equal(y[:, 0], x[:, 0])
    struck = (y != x).flatten(1).any(1)
    assert 150 < struck.sum() < 250
    if kind == "noise":
        assert (y - x)[struck][:, 1:].std().item() == pytest.approx(0.5 * 3, rel=0.05)
    else:
        assert (y[struck][:, 1:] == 0).all(-1).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(graft.eval().before(x), x) and lifecycle.instances(model) == 2


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_start_as_mean_patches_of_their_block(deep: bool) -> None:
    model = adapt(vit(), "vpt", tokens=4, deep=deep, init="patches").train()
    lifecycle.prepare(model, (model(X).sum() for _ in range(2)))
    stock, prompts = vit(), [g.tokens.values for _, _, g in grafts_named(model, "vpt") if g.tokens is not None]
    x = stock._pos_embed(stock.patch_embed(X))
    for index, values in enumerate(prompts):
        for block in stock.blocks[index - 1 : index] if index else ():
            x = block(x)
        expected = x[:, 1:].mean(0).unflatten(0, (4, 4)).mean(1)  # 16 patches, 4 prompts
        torch.testing.assert_close(values, expected)
    assert len(prompts) == (DEPTH if deep else 1)
    with pytest.raises(PeftError, match="was given none"):
        lifecycle.prepare(model, [])
    with pytest.raises(PeftError, match="neither projected nor transformed"):
        adapt(vit(), "vpt", init="patches", project=3)


def source(folder: Path, name: str, values: Tensor, **hyper: Any) -> str:
    """An adapter folder whose prompts are these."""
    model = adapt(vit(), name, tokens=len(values), **hyper)
    with torch.no_grad():
        made = model.blocks[0].peft[name].tokens.tokens
        (made if isinstance(made, torch.nn.Parameter) else made.values).copy_(values)
    save_adapter(model, folder)
    return str(folder)


def test_a_prompt_starts_from_the_nearest_source(tmp_path: Path) -> None:
    model = adapt(vit(), "spot", tokens=3)
    torch.manual_seed(1)
    start = model.blocks[0].peft.spot.tokens.tokens.detach().clone()
    near, far = start + 0.2, -start
    sources = [source(tmp_path / "far" / "adapter", "vpt", far), source(tmp_path / "near", "prompt_tuning", near)]
    sources[0] = str(tmp_path / "far")  # a run's folder
    model = adapt(vit(), "spot", tokens=3, sources=sources, passes=1, first_lr=1e-3)
    with torch.no_grad():
        model.blocks[0].peft.spot.tokens.tokens.copy_(start)
    lifecycle.prepare(model, [model(X).square().sum()])
    torch.testing.assert_close(model.blocks[0].peft.spot.tokens.tokens, near)
    memory = record_of(model).adaptations["spot"].memory
    assert memory["source"] == sources[1] and memory["nearness"][sources[1]] > memory["nearness"][sources[0]]
    one = adapt(vit(), "spot", tokens=3, sources=sources[:1])
    lifecycle.prepare(one, [])
    torch.testing.assert_close(one.blocks[0].peft.spot.tokens.tokens, far)


def test_a_prompt_starts_from_the_one_that_wakes_the_same_neurons(tmp_path: Path) -> None:
    model = adapt(vit(), "transfer_prompt", tokens=3, layers=1)
    own = model.blocks[0].peft.transfer_prompt.tokens.tokens.detach().clone()
    prompts = {"near": own + 0.02, "far": 50 * own.flip(0).roll(3, 1)}
    sources = [source(tmp_path / name, "prompt_tuning", values) for name, values in prompts.items()]

    class Losses(list):
        def __iter__(self):
            return iter(loss(tried(X)) for _ in range(1))

    tried = adapt(vit(), "transfer_prompt", tokens=3, layers=1, sources=sources[::-1], passes=1, first_lr=1e-9)
    with torch.no_grad():
        tried.blocks[0].peft.transfer_prompt.tokens.tokens.copy_(own)
    lifecycle.prepare(tried.train(), Losses([0]))
    memory = record_of(tried).adaptations["transfer_prompt"].memory

    def neurons(values: Tensor) -> Tensor:
        with torch.no_grad():
            model.blocks[0].peft.transfer_prompt.tokens.tokens.copy_(values)
            seen: list[Tensor] = []
            hook = model.blocks[-1].mlp.act.register_forward_hook(lambda _, __, y: seen.append(y[:, 0]))
            model.eval()(X)
            hook.remove()
        return (seen[0] > 0).double().flatten()

    here = neurons(own)
    wanted = {
        at: (neurons(p) @ here / (neurons(p).norm() * here.norm())).item()
        for at, p in zip(sources, prompts.values(), strict=True)
    }
    assert memory["nearness"] == pytest.approx(wanted, abs=1e-6) and memory["source"] == sources[0]
    assert wanted[sources[0]] > wanted[sources[1]] and tried.training
    torch.testing.assert_close(tried.blocks[0].peft.transfer_prompt.tokens.tokens, prompts["near"])
    with pytest.raises(PeftError, match="not a list of them"):
        lifecycle.prepare(
            adapt(vit(), "transfer_prompt", tokens=3, sources=sources), [loss(model(X)).detach().requires_grad_()]
        )


def test_neurons_are_compared_on_the_same_pictures(tmp_path: Path) -> None:
    model = adapt(vit(), "transfer_prompt", tokens=3, layers=1)
    own = model.blocks[0].peft.transfer_prompt.tokens.tokens.detach().clone()
    sources = [source(tmp_path / str(number), "prompt_tuning", own) for number in range(2)]
    passes = iter(range(9))

    class Shuffled:
        def __iter__(self):
            yield X * (1 - next(passes))

    tried = adapt(vit(), "transfer_prompt", tokens=3, layers=1, sources=sources, passes=1, first_lr=1e-12)
    with torch.no_grad():
        tried.blocks[0].peft.transfer_prompt.tokens.tokens.copy_(own)
    lifecycle.prepare(tried, lifecycle.Losses(lambda batch: loss(tried(batch)), Shuffled()))
    near = record_of(tried).adaptations["transfer_prompt"].memory["nearness"]
    assert list(near.values()) == pytest.approx([1.0, 1.0]) and next(passes) == 2  # one pass trains, one looks


def test_sources_that_do_not_fit_are_told(tmp_path: Path) -> None:
    fits = source(tmp_path / "two", "vpt", torch.ones(2, DIM))
    for hyper, words in (
        (dict(tokens=3, sources=[fits]), "holds 2 prompts of width 16, and 3 of width 16 are wanted"),
        (dict(sources=[str(tmp_path / "none")]), "there is no adapter folder"),
    ):
        with pytest.raises(PeftError, match=words):
            lifecycle.prepare(adapt(vit(), "spot", **hyper), [])
    save_adapter(adapt(vit(), "bitfit"), tmp_path / "other")
    with pytest.raises(PeftError, match="holds no prompts before blocks.0"):
        lifecycle.prepare(adapt(vit(), "spot", tokens=2, sources=[str(tmp_path / "other")]), [])


def test_nearness_by_hand() -> None:
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    assert nearness(one, other, "average") == pytest.approx(2.5 / (1.25**0.5 * 2.5))  # of (½, 1) and (2, 1½)
    assert nearness(one, other, "flat") == pytest.approx(0.0)
    assert nearness(one, other, "per_token") == pytest.approx(0.5)
    assert nearness(one, other, "distance") == pytest.approx(1 / (1 + (1 + 9 + 16 + 4) ** 0.5))


@pytest.mark.parametrize("name", ["prefix_propagation", "idpg", "gated_prompt", "selective_prompt"])
def test_what_acts_on_prompts_meets_its_own_beside_others(name: str) -> None:
    """Attention does not see in which order prompts stand, so neither does it which method came first."""
    outputs = []
    for order in ((name, "vpt"), ("vpt", name)):
        model = vit()
        for each in order:
            adapt(model, each, tokens=2, **({"deep": True} if each == "vpt" else {}))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "peft" in key.split("."):
                    generator = torch.Generator().manual_seed(len(key) + parameter.numel())
                    parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
        outputs.append(model.eval()(X))
    torch.testing.assert_close(*outputs)
