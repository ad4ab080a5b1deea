"""LoRA's starts and relatives against Hugging Face PEFT 0.21: same change, same gradients, same step."""

from typing import Any

import peft.optimizers.lorafa as peft_lorafa
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.config import EvaConfig, LoraGAConfig
from peft.tuners.lora.eva import get_eva_state_dict
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from diffusion_peft.files.layers import layer_of
from peft_core import PeftError, adapt, lifecycle, load_adapter, merge, save_adapter
from peft_core.kernels.frozen_down import frozen_down_linear
from peft_core.kernels.lowrank_linear import lowrank_linear
from peft_core.method import Method
from peft_core.methods.reparameterized import lora
from peft_core.methods.reparameterized.lora_fa import FrozenDown
from peft_core.methods.reparameterized.moslora import Mixed
from peft_core.parts import starts
from peft_core.parts.lowrank import LowRank
from peft_core.registry import make_method
from peft_core.testing import loss, perturb
from tests.parity.test_weight_changes import ALPHA, IN, OUT, RANK, Net, layer
from tests.tiny import MODELS

SCALE = ALPHA / RANK


def their_start(init: str, **more: Any) -> tuple[nn.Linear, Any, Tensor, Tensor]:
    net = Net(layer("linear"))
    torch.manual_seed(3)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], init_lora_weights=init, **more)
    inject_adapter_in_model(config, net)
    found: Any = net.layer
    return layer("linear"), found, found.lora_A.default.weight, found.lora_B.default.weight


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "mica"])
def test_starts_as_in_peft(init: str):
    """Their residual weight with A and B is our stock weight with the change, at the start and after a step."""
    stock, theirs, down, up = their_start(init)
    weight = stock.weight.detach()
    if init == "mica":
        change: Any = starts.FrozenUp(weight, None, RANK, SCALE)
        change.start(starts.minor(weight, RANK))
    else:
        change = starts.Anchored(weight, None, RANK, SCALE)
        torch.manual_seed(3)
        nn.init.kaiming_uniform_(torch.empty(RANK, IN))  # what PEFT draws before
        if init == "orthogonal":
            state = torch.random.get_rng_state()
            change.start(*starts.disjoint(weight, RANK, SCALE))
            torch.random.set_rng_state(state)
        else:
            change.start(*{"pissa": starts.principal, "olora": starts.orthonormal}[init](weight, RANK, SCALE))
    if init == "orthogonal":  # drawn: theirs is put in
        assert (change.B @ change.A).abs().max() < 1e-6 and (up @ down).abs().max() < 1e-6
        change.start(down.detach(), up.detach())
    torch.testing.assert_close(change.B @ change.A, up @ down, rtol=1e-4, atol=1e-5)
    x = torch.randn(7, IN)
    kept: Any = layer_of(change)  # a LoRA file says the same
    torch.testing.assert_close(weight + kept.scale * kept.tensors["B"] @ kept.tensors["A"], weight, atol=1e-6, rtol=0)
    assert torch.equal(change(weight), weight)
    torch.testing.assert_close(theirs(x), stock(x), rtol=1e-4, atol=1e-5)
    # the same singular vectors may come with other signs
    signs = (change.A * down).sum(1).sign() if init != "mica" else (change.B * up).sum(0).sign()
    moved = torch.randn(RANK, IN)
    with torch.no_grad():
        down += moved * signs[:, None]
        change.A += moved
    torch.testing.assert_close(F.linear(x, change(weight), stock.bias), theirs(x), rtol=1e-4, atol=1e-5)


def test_components_are_those_of_incremental_pca():
    torch.manual_seed(0)
    ours, theirs = starts.Components(3), IncrementalPCA(n_components=3, copy=True)
    for _ in range(4):
        rows = torch.randn(20, 8) * torch.linspace(3, 0.3, 8) + 1
        ours.add(rows, 0.99)
        theirs.partial_fit(rows)
    torch.testing.assert_close(ours.vectors, theirs.components_.float(), rtol=1e-4, atol=1e-4)


def pictures() -> list[Tensor]:
    """Sums of two patterns that every patch repeats, so that a layer's inputs have two components that stand out."""
    g = torch.Generator().manual_seed(0)
    patterns = torch.randn(2, 3, 8, 8, generator=g).tile(1, 1, 4, 4)
    strengths = torch.randn(3, 16, 2, generator=g) * torch.tensor([2.0, 0.7])
    return [
        torch.einsum("bk,kchw->bchw", s, patterns) + 0.1 * torch.randn(16, 3, 32, 32, generator=g) for s in strengths
    ]


TARGETS = ["attn.proj", "mlp.fc1"]


def settings(init: str) -> Method:
    return make_method("lora", rank=RANK, alpha=ALPHA, targets=("proj", "fc1"), init=init, start_batches=100)


def ours_and_theirs(model: nn.Module, names: dict[str, str]) -> list[tuple[LowRank, Any]]:
    return [
        (model.get_submodule(f"{path}.peft.lora.{role}"), path)
        for path, role in ((f"blocks.{i}.{end}", names[end]) for i in range(3) for end in TARGETS)
    ]  # type: ignore[misc]


def test_eva_starts_as_in_peft(monkeypatch):
    monkeypatch.setattr(lora, "THRESHOLD", 0.9999)
    model = adapt(MODELS["vit"].model().eval(), settings("eva"))
    lifecycle.prepare(model, (loss(model(x)) for x in pictures() * 40))
    config = LoraConfig(
        r=RANK, target_modules=TARGETS, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0, tau=0.9999)
    )
    net = get_peft_model(MODELS["vit"].model().eval(), config, low_cpu_mem_usage=True)
    found = get_eva_state_dict(
        net, [dict(x=x) for x in pictures()], forward_fn=lambda model, inputs: model(inputs["x"]),
        prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    for change, path in ours_and_theirs(model, {"attn.proj": "proj", "mlp.fc1": "fc1"}):
        theirs = found[f"base_model.model.{path}"]
        assert torch.cosine_similarity(change.A, theirs).abs().min() > 0.97, path  # both stop when they turn little
        assert not change.B.any()


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")  # of theirs
def test_lora_ga_starts_as_in_peft():
    model = adapt(MODELS["vit"].model().train(), settings("lora_ga"))
    lifecycle.prepare(model, (loss(model(x)) for x in pictures()))
    net = MODELS["vit"].model()
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )

    def train_step() -> None:
        for x in pictures():
            loss(net(x)).backward()

    preprocess_loraga(net, config, train_step)
    inject_adapter_in_model(config, net)
    for change, path in ours_and_theirs(model, {"attn.proj": "proj", "mlp.fc1": "fc1"}):
        theirs: Any = net.get_submodule(path)
        for one, other in ((change.A, theirs.lora_A.default.weight), (change.B.t(), theirs.lora_B.default.weight.t())):
            signs = (one * other).sum(1).sign()[:, None]
            torch.testing.assert_close(one, other * signs, rtol=1e-2, atol=1e-3)
    x = pictures()[0]
    torch.testing.assert_close(net.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(model(x), MODELS["vit"].model().eval()(x))


@pytest.mark.parametrize("name", ["vit", "clip", "unet", "swin"])
@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_starts_from_data_keep_identity_and_load_on_stock_weights(init: str, name: str, tmp_path):
    family = MODELS[name]
    targets = ("attn", "conv") if name == "unet" else ("attn", "mlp")
    model = adapt(family.model().eval(), "lora", rank=2, init=init, targets=targets)
    lifecycle.prepare(model, (loss(family(model)) for _ in range(3)))
    assert all(p.grad is None and p.requires_grad == ("peft" in k or "head" in k or "fc_norm" in k)
               for k, p in model.named_parameters() if p.requires_grad)  # fmt: skip
    torch.testing.assert_close(family(model), family.outputs["eval"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for change in model.modules():
            if isinstance(change, LowRank):
                assert change.A.any()
                change.B += 0.1
    y = family(model)
    save_adapter(model, tmp_path)
    assert torch.equal(family(load_adapter(family.model().eval(), tmp_path)), y)
    torch.testing.assert_close(family(merge(model)), y, rtol=1e-4, atol=1e-5 * y.abs().max().item())


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_a_start_from_data_without_data_is_told(init: str):
    model = adapt(MODELS["vit"].model(), "lora", rank=2, init=init)
    with pytest.raises(PeftError, match=r"starts from data: call peft_core.lifecycle.prepare\(model, losses\) before"):
        lifecycle.after_step(model, lifecycle.Progress(1, 10))
    with pytest.raises(PeftError, match="was given none"):
        lifecycle.prepare(model, iter(()))


def test_an_odd_rank_has_no_halves():
    with pytest.raises(PeftError, match="3 is odd"):
        adapt(MODELS["vit"].model(), "lora", rank=3, init="orthogonal")


def test_moslora_mixes_between_its_factors():
    """y = W x + s·B (M (A x)), as wutaiqiang/MoSLoRA@bba79b5 has it, in float64."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN, dtype=torch.float64)
    change, x = Mixed(weight, None, RANK, SCALE), torch.randn(5, IN, dtype=torch.float64)
    nn.init.normal_(change.B)
    y = lowrank_linear(x, weight, None, [change])
    expected = x @ weight.t() + SCALE * ((x @ change.A.t()) @ change.M.t()) @ change.B.t()
    torch.testing.assert_close(y, expected)
    g, tensors = torch.randn_like(y), [change.A, change.M, change.B]
    for one, other in zip(torch.autograd.grad(y, tensors, g), torch.autograd.grad(expected, tensors, g), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["moslora", "lora_fa", "lora"])
def test_trains_under_autocast(name: str):
    """M A of MoSLoRA and A x of LoRA-FA are products that autocast would make in 16 bits."""
    family = MODELS["vit"]
    settings: dict[str, Any] = {"init": "pissa"} if name == "lora" else {}
    model = adapt(family.model().train(), name, rank=2, targets=("q", "fc1"), **settings)
    perturb(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(family(model).float()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("tokens", [3, 2000])
def test_frozen_down_has_loras_gradients_and_keeps_no_input(tokens: int):
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 64, dtype=torch.float64), torch.randn(48, dtype=torch.float64)
    changes = [FrozenDown(weight, rows, 2, 1.5) for rows in ((0, 16), (32, 48))]
    for change in changes:
        nn.init.normal_(change.B)
    x = torch.randn(tokens, 64, dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = frozen_down_linear(x, weight, bias, changes)
    assert not any(t.shape == x.shape for t in kept)
    expected = F.linear(x, weight, bias)
    for change, (start, stop) in zip(changes, ((0, 16), (32, 48)), strict=True):
        expected = expected + F.pad(1.5 * (x @ change.A.t()) @ change.B.t(), (start, 48 - stop))
    torch.testing.assert_close(y, expected)
    g, tensors = torch.randn_like(y), [x, *(change.B for change in changes)]
    for again in (False, True):
        ours = torch.autograd.grad(y, tensors, g, create_graph=again, retain_graph=True)
        peers = torch.autograd.grad(expected, tensors, g, create_graph=again, retain_graph=True)
        for one, other in zip(ours, peers, strict=True):
            torch.testing.assert_close(one, other)
    second, other = (torch.autograd.grad(sum(t.square().sum() for t in found), tensors) for found in (ours, peers))
    for one, peer in zip(second, other, strict=True):
        torch.testing.assert_close(one, peer)


def test_lora_fa_steps_as_in_peft(monkeypatch):
    """Three steps of PEFT's LoraFAOptimizer are three of AdamW on the gradient that `before_step` leaves."""
    monkeypatch.setattr(peft_lorafa, "is_bf16_available", lambda: False)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    net: Any = get_peft_model(MODELS["vit"].model().eval(), config)
    theirs = peft_lorafa.create_lorafa_optimizer(net, RANK, ALPHA, lr=1e-2)  # type: ignore[arg-type]
    model = adapt(
        MODELS["vit"].model().eval(), "lora_fa", rank=RANK, alpha=ALPHA, targets=("proj", "fc1"), train_head=False
    )
    pairs = [(model.get_submodule(f"{path}.peft.lora_fa.{role}"), net.get_submodule(f"base_model.model.{path}"))
             for path, role in ((f"blocks.{i}.{end}", end.partition(".")[2]) for i in range(3) for end in TARGETS)]  # fmt: skip
    for change, peer in pairs:
        change.A.copy_(peer.lora_A.default.weight)
    optimiser = torch.optim.AdamW(lifecycle.parameter_groups(model, 1e-2), eps=1e-20)
    theirs.param_groups[0]["eps"] = 1e-20  # theirs stands beside the uncorrected mean
    x = pictures()[0]
    for _ in range(3):
        for who, step in ((model, optimiser), (net, theirs)):
            step.zero_grad()
            loss(who(x)).backward()
            if who is model:
                lifecycle.before_step(model)
            step.step()
    for change, peer in pairs:
        torch.testing.assert_close(change.B, peer.lora_B.default.weight, rtol=1e-4, atol=1e-5)


def test_lora_plus_groups():
    model = adapt(MODELS["vit"].model(), "lora_plus", rank=2, lr_ratio=10)
    groups = {id(p): group for group in lifecycle.parameter_groups(model, 1e-3, 0.1) for p in group["params"]}
    for key, p in model.named_parameters():
        if p.requires_grad:
            fast = key.endswith((".B", "head.bias"))
            assert groups[id(p)]["lr"] == pytest.approx(1e-2 if fast else 1e-3), key
            assert groups[id(p)]["weight_decay"] == (0.0 if p.dim() == 1 else 0.1), key
