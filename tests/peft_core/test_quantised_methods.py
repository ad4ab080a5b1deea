"""Methods that stand on a quantised backbone: their formulas, what they merge into, and the libraries that have them."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.variants import QALoraLinearVariant as Theirs
from peft.utils.loftq_utils import _low_rank_decomposition
from torch import nn

from peft_core import (
    NotMergeable,
    PeftError,
    adapt,
    count_parameters,
    dequantise,
    lifecycle,
    list_methods,
    merge,
    quantise,
)
from peft_core.kernels.quantised import dense, packed_of
from peft_core.method import Method
from peft_core.methods.quantised.qa_lora import Pooled
from peft_core.parts.quantised.packed import PackedLinear
from peft_core.quantising import Kind
from peft_core.registry import find_method
from peft_core.testing import check, loss, perturb
from tests.tiny import MODELS, Tiny, pictures, vit


def family(kind: Kind, group: int | None = None) -> Tiny:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    return Tiny(lambda: quantise(vit(embed_dim=64, num_heads=2)(), kind, keep=True, group=group), pictures())


OF_FEW_BITS = [m for name in list_methods() for m in find_method(name).examples() if "quantised" in m.needs]


@pytest.mark.parametrize("method", OF_FEW_BITS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["int4", "nf4"])
def test_contract(kind: Kind, method: Method) -> None:
    refusal = check(family(kind), method)
    assert refusal is None or (method.name == "peqa" and kind == "nf4" and "holds none" in refusal)


def test_loftq_starts_at_what_quantisation_lost_as_peft_has_it() -> None:
    tiny = family("int2")
    stock: Any = tiny.model()
    whole = stock.blocks[0].attn.proj.peft_float_weight
    model: Any = adapt(tiny.model(), "loftq", rank=4, alpha=4.0, targets=("proj",))
    module = model.blocks[0].attn.proj
    change, rounded = module.peft.loftq.proj, dense(packed_of(module), torch.float32)
    theirs = _low_rank_decomposition(whole - rounded, 4)
    torch.testing.assert_close(change.B @ change.A, theirs["L"] @ theirs["R"], rtol=1e-4, atol=1e-6)
    assert (whole - rounded - change.B @ change.A).norm() < 0.95 * (whole - rounded).norm()
    scaled: Any = adapt(tiny.model(), "loftq", rank=4, alpha=16.0, targets=("proj",))
    again = scaled.blocks[0].attn.proj.peft.loftq.proj
    torch.testing.assert_close(4.0 * again.B @ again.A, change.B @ change.A, rtol=1e-4, atol=1e-6)


def test_int2_1_is_taught_by_the_float_model_with_the_head_as_it_stands() -> None:
    stock: Any = vit(embed_dim=64, num_heads=2)()
    model: Any = quantise(copy.deepcopy(stock), "int2", keep=True)
    adapt(model, "int2_1", rank=4, alpha=8.0, targets=("q", "v", "mlp"), dropout=0.0, divergence=3.0)
    perturb(model)
    stock.head.load_state_dict(model.head.state_dict())
    x = torch.randn(3, 3, 32, 32)
    y = model.train()(x)
    with torch.no_grad():
        p = stock.eval()(x).softmax(-1)
    expected = 3.0 * (p * (p.log() - y.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(lifecycle.penalty(model), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(PeftError, match="call the model itself before the penalty"):
        lifecycle.penalty(model)
    assert lifecycle.penalty(model.eval()) == 0.0


def test_int2_1_comes_nearer_to_the_float_model_and_lets_it_go() -> None:
    torch.manual_seed(0)
    tiny = family("int2")
    model: Any = adapt(tiny.model(), "int2_1", rank=8, alpha=8.0, dropout=0.0)
    x, apart = torch.randn(8, 3, 32, 32), []
    optimizer = torch.optim.Adam([p for key, p in model.named_parameters() if ".peft." in key], lr=3e-3)
    for _ in range(12):
        model.train()(x)
        apart.append(lifecycle.penalty(model))
        optimizer.zero_grad()
        apart[-1].backward()
        optimizer.step()
    assert apart[-1] < 0.5 * apart[0]
    lifecycle.finish(model)
    model(x)
    with pytest.raises(PeftError, match="quantise with keep=True"):
        lifecycle.penalty(model)


@pytest.mark.parametrize("name", ["loftq", "peqa", "int2_1"])
def test_a_backbone_that_is_not_quantised_is_refused_with_the_call_to_make(name: str) -> None:
    with pytest.raises(PeftError, match=r"quantise\(model, "):
        adapt(MODELS["vit"].model(), name)
    if name == "loftq":
        with pytest.raises(PeftError, match="no longer has it.*keep=True"):
            adapt(quantise(MODELS["vit"].model(), "int4"), name)


def test_qa_lora_is_pefts() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 24)

    net, x = Net(), torch.randn(3, 5, 32)
    stock = copy.deepcopy(net.layer)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["layer"], use_qalora=True, qalora_group_size=8)
    inject_adapter_in_model(config, net)
    if net.layer.lora_A["default"].in_features != 4:  # their plain linears leave it to those of GPTQ
        Theirs.init(net.layer, "default", config)
    change = Pooled(stock.weight, None, 4, 2.0 * (32 // 8), 0.0, 8)  # theirs is the mean times the number of groups
    nn.init.normal_(change.B)
    net.layer.lora_A["default"].weight.data = change.A.data.clone()
    net.layer.lora_B["default"].weight.data = change.B.data.clone()
    theirs = Theirs.forward(net.layer, "default", x, stock(x))
    torch.testing.assert_close(change.kernel(x, stock.weight, stock.bias, [change]), theirs, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad(F.linear(x, change(stock.weight)).square().sum(), (change.A, change.B))
    delta = theirs - stock(x) + F.linear(x, stock.weight)
    of_peft = torch.autograd.grad(
        delta.square().sum(), (net.layer.lora_A["default"].weight, net.layer.lora_B["default"].weight)
    )
    for one, other in zip(mine, of_peft, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_qa_lora_merges_into_the_zero_points() -> None:
    tiny = family("int4", group=8)
    model: Any = adapt(tiny.model(), "qa_lora", rank=4, group_size=16, targets=("q", "v", "fc1"))
    perturb(model)
    y, stock = tiny(model.eval()).detach(), tiny.model().state_dict()
    merge(model)
    torch.testing.assert_close(tiny(model), y, rtol=1e-4, atol=1e-5)
    assert type(model.blocks[0].attn.qkv) is PackedLinear
    moved = {key.rpartition(".")[2] for key, value in model.state_dict().items() if not torch.equal(value, stock[key])}
    assert moved <= {"zero"} | {
        key for key in ("weight", "bias") if not torch.equal(model.head.weight, stock["head.weight"])
    }
    width = dict(tiny.model().named_modules())["blocks.0.attn.qkv"]
    assert torch.equal(model.blocks[0].attn.qkv.zero[64:128], width.zero[64:128])  # of k
    coarse = adapt(family("int4", group=32).model(), "qa_lora", rank=4, group_size=16)
    with pytest.raises(NotMergeable, match="quantised"):
        merge(coarse)


def test_qa_lora_says_which_groups_do_not_divide() -> None:
    with pytest.raises(PeftError, match="groups of 7 inputs, which do not divide the 48"):
        adapt(MODELS["vit"].model(), "qa_lora", rank=2, group_size=7)
    with pytest.raises(PeftError, match="do not divide a width of 48"):
        quantise(MODELS["vit"].model(), "int4", group=32)


def test_peqa_is_the_formula_and_counts_as_the_paper() -> None:
    tiny = family("int4", group=0)
    model: Any = adapt(tiny.model(), "peqa")
    perturb(model)
    module = model.blocks[0].mlp.fc1
    codes, zero = packed_of(module).tensors
    integers = torch.cat((codes & 15, codes >> 4), 1).float() - zero
    torch.testing.assert_close(dense(packed_of(module), torch.float32), module.scale.detach() * integers)
    y = tiny(model.eval()).detach()
    torch.testing.assert_close(tiny(dequantise(copy.deepcopy(model))), y, rtol=1e-4, atol=1e-5)
    with pytest.raises(PeftError, match="name q, k and v together"):
        adapt(tiny.model(), "peqa", targets=("q", "v"))
    for group, count in ((0, 82_944), (128, 663_552)):
        with torch.device("meta"):
            big = timm.create_model("vit_base_patch16_224")
        assert count_parameters(adapt(quantise(big, "int4", group=group), "peqa")).inserted == count


def test_a_task_is_learnt_on_integers() -> None:
    tiny = family("int4")
    model = adapt(tiny.model(), "peqa").train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        value = loss(tiny(model).square())
        losses.append(value.item())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
