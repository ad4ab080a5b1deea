"""Linears of few bits: what is known of them, adapters beside them, and back to plain ones."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import (
    NotMergeable,
    PeftError,
    adapt,
    count_parameters,
    dequantise,
    disabled,
    lifecycle,
    list_methods,
    load_adapter,
    merge,
    quantise,
    remove,
    save_adapter,
)
from peft_core.kernels.levels import in_bytes
from peft_core.kernels.quantised import dense, packed_linear, packed_of
from peft_core.parts.lowrank import LowRank
from peft_core.parts.quantised.packed import NF4Linear, PackedLinear, rounded
from peft_core.registry import find_method
from peft_core.saved.fingerprint import OtherPrecision
from peft_core.testing import loss, perturb
from peft_core.testing.families import Losses
from tests.tiny import MODELS, Tiny, pictures, vit

VIT = Tiny(vit(embed_dim=64, num_heads=2), pictures())


def of_bitsandbytes(model: Any, make: Callable[[Any, nn.Linear], nn.Linear]) -> nn.Module:
    library = pytest.importorskip("bitsandbytes")
    for block in model.blocks:
        for owner, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            old: nn.Linear = getattr(owner, name)
            new: Any = make(library.nn, old)
            new.weight.data, new.bias = old.weight.data.clone(), old.bias
            setattr(owner, name, new)
    return model.to("cpu")


def of_torchao(model: nn.Module) -> nn.Module:
    library = pytest.importorskip("torchao.quantization")
    linears = lambda module, path: type(module) is nn.Linear and "blocks" in path  # noqa: E731
    library.quantize_(model, library.Int8WeightOnlyConfig(), filter_fn=linears)
    return model


def _linear4bit(nested: bool) -> Callable[[Any, nn.Linear], nn.Linear]:
    return lambda lib, old: lib.Linear4bit(
        old.in_features, old.out_features, quant_type="nf4", compress_statistics=nested
    )


def _linear8bit(lib: Any, old: nn.Linear) -> nn.Linear:
    return lib.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    **{kind: lambda model, kind=kind: quantise(model, kind) for kind in ("nf4", "int8", "int4", "int2")},
    "Linear4bit": lambda model: of_bitsandbytes(model, _linear4bit(False)),
    "Linear4bit nested": lambda model: of_bitsandbytes(model, _linear4bit(True)),
    "Linear8bitLt": lambda model: of_bitsandbytes(model, _linear8bit),
    "torchao": of_torchao,
}


def quantised(kind: str, family: Tiny = VIT) -> nn.Module:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    return KINDS[kind](family.model())


@pytest.mark.parametrize("kind", KINDS)
def test_lora_beside_a_quantised_backbone(kind: str, tmp_path: Path) -> None:
    model = quantised(kind).train()
    y = VIT(model)
    adapt(model, "lora", rank=2, targets=("q", "v", "fc1"))
    if kind == "torchao":  # which puts the scales in behind the product
        torch.testing.assert_close(VIT(model), y, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(VIT(model), y)
    perturb(model)
    loss(VIT(model)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    y = VIT(model.eval()).detach()
    again = load_adapter(quantised(kind).eval(), save_adapter(model, tmp_path / "a"))
    torch.testing.assert_close(VIT(again), y)
    with pytest.warns(OtherPrecision, match="quantised to .*, and this one is not quantised"):
        plain = load_adapter(VIT.model().eval(), tmp_path / "a")
    assert count_parameters(plain) == count_parameters(model)
    assert (VIT(plain) - y).norm() < 0.3 * y.norm()
    with pytest.raises(NotMergeable, match="dequantise"):
        merge(model)
    if kind != "torchao":  # whose tensors torch does not pickle
        torch.testing.assert_close(VIT(pickle.loads(pickle.dumps(model))), y)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(VIT(twin), y)
    merged: Any = merge(dequantise(twin))
    assert type(merged.blocks[0].attn.qkv) is nn.Linear
    # LLM.int8 rounds its inputs, too, in eval
    tolerance = dict(rtol=0.0, atol=0.02) if kind == "Linear8bitLt" else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(VIT(merged), y, **tolerance)
    remove(model)
    assert "peft" not in str(model.state_dict().keys())


def test_an_adapter_of_a_plain_backbone_on_a_quantised_one_says_so(tmp_path: Path) -> None:
    save_adapter(adapt(VIT.model(), "lora", rank=2), tmp_path / "a")
    with pytest.warns(OtherPrecision, match="not quantised, and this one is quantised to int4"):
        load_adapter(quantised("int4"), tmp_path / "a")
    torch.manual_seed(9)
    other = quantise(vit(embed_dim=64, num_heads=2)(), "int4")
    with pytest.raises(PeftError, match="other weights"):
        load_adapter(other, tmp_path / "a")


@pytest.mark.parametrize("kind", ["nf4", "int8", "int4", "int2"])
@pytest.mark.parametrize("tokens", [2, 400])
@pytest.mark.parametrize("rows", [None, (8, 40)])
def test_kernel_is_the_formula(kind: str, tokens: int, rows: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    holder = quantised(kind, Tiny(vit(embed_dim=64, num_heads=2), pictures()))
    module: Any = holder.blocks[0].attn.proj  # type: ignore[union-attr,index]
    weight = dense(packed_of(module), torch.float32)
    delta = LowRank(weight, rows, 3, 0.7)
    nn.init.normal_(delta.B)
    x = torch.randn(2, tokens, 64, requires_grad=True)
    y, expected = (
        packed_linear(x, packed_of(module), module.bias, [delta]),
        F.linear(x, delta_of(delta, weight), module.bias),
    )
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    inputs = (x, delta.A, delta.B)
    grads = [
        torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs)
        for out in (y, expected)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def delta_of(delta: LowRank, weight: Tensor) -> Tensor:
    if delta.rows is None:
        return delta(weight)
    start, stop = delta.rows
    return torch.cat((weight[:start], delta(weight[start:stop]), weight[stop:]))


def test_scales_of_groups_train_and_second_derivatives_are_right() -> None:
    torch.manual_seed(0)
    module = PackedLinear(nn.Linear(8, 4).double(), 4, 4)
    module.scale.data, module.zero.data = module.scale.double(), module.zero.double()
    module.scale.requires_grad_(True)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        return packed_linear(x, module.packed()._replace(scale=scale), module.bias.detach())

    assert torch.autograd.gradcheck(run, (x, module.scale))
    assert torch.autograd.gradgradcheck(run, (x, module.scale))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_packed_and_unpacked(bits: int) -> None:
    weight = torch.randn(6, 16)
    codes, scale, zero = rounded(weight, bits, 8)
    assert in_bytes(codes, bits).shape == (6, 16 * bits // 8)
    module = PackedLinear(nn.Linear(16, 6), bits, 8)
    module.set_weight(weight)
    plain = (codes.view(6, 2, 8) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    torch.testing.assert_close(dense(module.packed(), torch.float32), plain.view(6, 16))
    # never further off than half a step, and a group's least and largest come back
    assert ((plain - weight.view(6, 2, 8)).abs() <= scale.unsqueeze(-1) * 0.501).all()


def test_nf4_is_bitsandbytes() -> None:
    ours: Any = quantised("nf4")
    theirs: Any = quantised("Linear4bit nested")
    for one, other in zip(ours.blocks, theirs.blocks, strict=True):
        a, b = dense(packed_of(one.mlp.fc1), torch.float32), dense(packed_of(other.mlp.fc1), torch.float32)
        assert torch.equal(a, b)


def test_what_is_quantised_are_linears_inside() -> None:
    model: Any = quantise(VIT.model(), "int4")
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    assert (
        kinds["blocks.0.attn.qkv"] == "PackedLinear"
        and kinds["head"] == "Linear"
        and kinds["patch_embed.proj"] == "Conv2d"
    )
    clip: Any = quantise(MODELS["clip"].model(), "int4")
    assert type(clip.visual.transformer.resblocks[0].mlp.c_fc).__name__ == "PackedLinear"
    assert MODELS["clip"](clip).isfinite().all()  # attention's own linears are read without being called
    eva: Any = quantise(MODELS["eva_fused"].model(), "int4")
    assert type(eva.blocks[0].attn.qkv).__name__ == "Linear"


def test_bytes_beside_float16() -> None:
    pytest.importorskip("bitsandbytes")
    linear = nn.Linear(512, 512, bias=False)
    module = NF4Linear(linear)
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    assert size <= 0.30 * 2 * linear.weight.numel()


@pytest.mark.parametrize(
    ("kind", "words"), [("int3", 'not "int3"'), ("int4", "quantise a stock model"), ("again", "no plain linear")]
)
def test_bad_input_is_told(kind: str, words: str) -> None:
    model: Any = VIT.model()
    if kind == "int4":
        adapt(model, "lora", rank=2)
    if kind == "again":
        quantise(model, "int4")
    with pytest.raises(PeftError, match=words):
        quantise(model, "int4" if kind == "again" else kind)  # type: ignore[arg-type]


def test_a_change_that_does_not_add_is_refused_in_a_sentence() -> None:
    model = quantise(VIT.model(), "int4")
    for name in ("dora", "oft", "ia3"):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(PeftError, match="quantised, and beside that only changes that add can run"):
            adapt(model, name, targets=("fc1",)) if name != "ia3" else adapt(model, name)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", list_methods())
def test_every_method_runs_beside_a_quantised_backbone_or_says_why_not(name: str) -> None:
    for method in find_method(name).examples():
        try:
            adapt(MODELS["vit"].model(), method)
        except PeftError:
            continue
        model = quantise(MODELS["vit"].model(), "int8", keep=True)
        try:
            adapt(model, method)
            if lifecycle.wants(model, "prepare"):
                lifecycle.prepare(model.train(), Losses(model, MODELS["vit"]))
        except PeftError as refusal:
            assert "quantised" in str(refusal) and str(refusal).endswith("."), refusal
            continue
        perturb(model)
        loss(MODELS["vit"](model.train())).backward()
        assert any(p.grad is not None for p in model.parameters())
        model.eval()
        with torch.no_grad():
            y, plain = MODELS["vit"](model), MODELS["vit"](dequantise(copy.deepcopy(model)))
        torch.testing.assert_close(y, plain, rtol=1e-3, atol=1e-4)
        if method.keeps_originals:
            with disabled(model):
                assert MODELS["vit"](model).isfinite().all()


def test_compiled_and_of_each_sample() -> None:
    model = adapt(quantised("nf4"), "lora", rank=2).eval()
    perturb(model)
    y = VIT(model)
    torch._dynamo.reset()
    torch.testing.assert_close(VIT(torch.compile(model, backend="aot_eager", fullgraph=True)), y, rtol=1e-4, atol=1e-5)
    trained = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x[None],)).square().sum()

    x = VIT.batch()["x"]
    each = torch.func.vmap(torch.func.grad(one), (None, 0))(trained, x)
    whole = torch.func.grad(lambda weights: sum(one(weights, picture) for picture in x))(trained)  # type: ignore[arg-type]
    for key in trained:
        torch.testing.assert_close(each[key].sum(0), whole[key], rtol=1e-3, atol=1e-4)
