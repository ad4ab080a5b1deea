"""What every method promises on every family it works on."""

import copy
import io
import pickle
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from peft_core import (
    NotMergeable,
    PeftError,
    adapt,
    count_parameters,
    disabled,
    list_methods,
    load_adapter,
    merge,
    remove,
    save_adapter,
    set_scale,
)
from peft_core.attach import is_inserted
from peft_core.registry import make_method
from peft_core.stock import head_of, trained_head
from tests.tiny import MODELS, words


@dataclass(frozen=True)
class Case:
    model: str
    method: str
    hyper: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        settings = (f"{k}_{'_'.join(map(str, v)) if isinstance(v, tuple | dict) else v}" for k, v in self.hyper)
        return "-".join([self.model, self.method, *settings])


def cases() -> list[Case]:
    found = []
    for name, tiny in MODELS.items():
        settings: list[tuple[str, dict[str, Any]]] = [
            ("full", {}),
            ("linear", {}),
            ("bitfit", {}),
            ("layer_norm", {}),
            ("lora", {"rank": 2}),
            ("lora", {"rank": 2, "alpha": 3.0, "rs": True, "targets": tiny.linears}),
            ("adaptformer", {"bottleneck": 16, "dropout": 0.0, "learn_scale": True}),
            *(("adapter", {"bottleneck": 4, "position": position}) for position in ("houlsby", "pfeiffer", "parallel")),
            ("adapter_plus", {"bottleneck": 4}),
        ]
        if name in ("vit", "clip", "clip_text_model", "unet"):
            # compiling takes seconds a linear: the ViT, which is compiled, has two parts of a fused weight and one whole
            settings += weight_changes(("q", "v", "proj") if name == "vit" else tiny.linears)
        if name not in ("vit", "clip", "unet"):
            settings = [
                s
                for s in settings
                if s[1].get("position") != "pfeiffer" and not (s[0] == "lora" and "alpha" not in s[1])
            ]
        if "qkv" not in tiny.linears and name not in ("clip_text_model", "unet", "eva"):
            settings.append(("lora", {"rank": 2, "targets": ("qkv",)}))
        if name == "unet":
            settings += [("custom_diffusion", {}), *CONTROLS]
        if name == "clip_text_model":
            settings.append(("textual_inversion", {"first": IN_BATCH, "initial": (IN_BATCH,)}))
        settings.append(("ssf", {}))
        if tiny.tokens:
            settings += [("vpt", {"tokens": 2}), ("vpt", {"tokens": 2, "deep": True})]
            if name == "vit":
                settings.append(("noah", {"widths": {"vpt": [2, 0, 1], "lora": [0, 2, 1], "adapter": [2, 3, 0]}}))
        if tiny.tokens or name == "clip":  # the two pictures of a batch are one clip of two frames
            over_time: dict[str, Any] = {"width": 8, "frames": 2} | ({} if tiny.tokens else {"tower": "image"})
            settings.append(("st_adapter", over_time))
            # in the last block nothing that patch tokens become after attention reaches a class token
            settings.append(("st_adapter", over_time | {"positions": ("attn", "mlp"), "blocks": (0,)}))
            settings.append(("aim", over_time | {"per_block": 4}))
        found += [Case(name, method, tuple(hyper.items())) for method, hyper in settings]
    return found


LAYERS = {
    "conv_in": {"kind": "lora", "rank": 2, "scale": 1.5},
    "mid_block.resnets.0.conv1": {"kind": "loha", "rank": 2, "scale": 0.5, "cores": True},
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": {"kind": "dora", "rank": 3, "scale": 1.0},
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2": {
        "kind": "lokr", "rank": 2, "scale": 2.0, "whole1": True, "whole2": False, "cores": False, "outer": [4, 8],
    },
}  # fmt: skip


CONTROLS: list[tuple[str, dict[str, Any]]] = [
    ("controlnet", {"shrink": 1}),
    ("controlnet", {"shrink": 1, "join": "norm"}),
    ("control_lora", {"shrink": 1, "rank": 2}),
    ("controlnext", {"shrink": 1, "width": 8}),
    ("t2i_adapter", {"shrink": 1}),
    ("ip_adapter", {"width": 6}),
    ("ip_adapter", {"width": 6, "plus": True}),
    ("gligen", {}),
]
"""The tiny UNet gives each of them a condition before every call."""


IN_BATCH = int(words("x")()["x"][0, 2])
"""A token of the tiny text model's batch: one whose row stands beside the table must be in use to be seen."""


def weight_changes(linears: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    ranked = {"rank": 2, "alpha": 3.0, "targets": linears}
    return [
        ("dora", ranked),
        ("loha", ranked | {"tucker": True}),
        ("lokr", ranked | {"tucker": True, "decompose_both": True}),
        ("oft", {"block_size": 4, "targets": linears}),
        ("ia3", {}),
        ("diff_fit", {}),
    ] + ([("lora_file", {"layers": LAYERS})] if "conv" in linears else [])


each_case = pytest.mark.parametrize("case", cases(), ids=str)
MERGEABLE = "lora dora loha lokr oft ia3 diff_fit lora_file custom_diffusion full linear bitfit layer_norm".split()
CLASSIFIERS = ("vit", "deit", "dinov2_registers", "average_pooled", "eva", "eva_fused")


def adapted(case: Case):
    return adapt(MODELS[case.model].model(), case.method, **dict(case.hyper))


def perturb(model) -> None:
    """Move every trainable a little, as training would: reproducible and large enough to be seen in the output."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted((k, p) for k, p in model.named_parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def loss(y: torch.Tensor) -> torch.Tensor:
    """Weighs each output by another number: the squares of CLIP's features sum to 1 whatever the adapter does."""
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


def test_every_method_is_covered():
    assert {case.method for case in cases()} == set(list_methods())


@each_case
def test_identity_at_step_0_in_train_mode(case: Case):
    tiny = MODELS[case.model]
    stock = tiny.model().train()
    y = tiny(adapted(case).train())
    if not make_method(case.method, **dict(case.hyper)).identity:
        assert not torch.equal(y, tiny(stock)), "a method that is identical at step 0 must say so"
    elif case.model.endswith("clip") or case.model == "clip_image":
        torch.testing.assert_close(y, tiny(stock), rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(y, tiny(stock))


@each_case
def test_only_its_parameters_train_and_each_gets_a_gradient(case: Case):
    tiny, model = MODELS[case.model], adapted(case).train()
    perturb(model)
    record = model.__dict__["_peft_record"]
    (adaptation,) = record.adaptations.values()
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trains == {k for k, _ in model.named_parameters() if is_inserted(k)} | set(adaptation.trained) | set(
        trained_head(model)
    )
    if not trains:
        return
    loss(tiny(model)).backward()
    dead = [key for key in trains if (g := dict(model.named_parameters())[key].grad) is None or not g.abs().sum() > 0]
    # softmax does not see a bias that all keys share; a model's unused parts see no gradient without an adapter either
    unused = unused_parameters(case)
    assert [key for key in dead if key not in unused and not key.endswith(("k_proj.bias", "k_norm.bias"))] == []


def unused_parameters(case: Case) -> set[str]:
    tiny = MODELS[case.model]
    model = tiny.model().train().requires_grad_(True)
    loss(tiny(model)).backward()
    return {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}


@each_case
def test_save_load_gives_the_same_outputs(case: Case, tmp_path):
    tiny, model = MODELS[case.model], adapted(case).eval()
    perturb(model)
    save_adapter(model, tmp_path)
    again = load_adapter(tiny.model().eval(), tmp_path)
    assert torch.equal(tiny(again), tiny(model))
    assert count_parameters(again) == count_parameters(model)


@each_case
def test_merge_gives_the_stock_class_and_the_same_outputs(case: Case):
    tiny, model = MODELS[case.model], adapted(case).eval()
    perturb(model)
    y, stock = tiny(model), tiny.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        merge(model)
    except NotMergeable as reason:
        assert str(reason).endswith(".") and torch.equal(tiny(model), y)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert case.method not in MERGEABLE
        return
    torch.testing.assert_close(tiny(model), y, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in stock.modules()]


@each_case
def test_remove_and_disabled_give_the_model_that_came_in(case: Case):
    tiny, model = MODELS[case.model], adapted(case).eval()
    stock = tiny.model().eval()
    perturb(model)
    heads = head_of(model)
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if k in heads}, strict=False)
    if case.method == "full":
        with pytest.raises(PeftError, match="keeps no copy"):
            remove(model)
        with pytest.raises(PeftError, match="keeps no copy"), disabled(model):
            pass
        return
    y = tiny(model)
    with disabled(model):
        torch.testing.assert_close(tiny(model), tiny(stock), rtol=1e-5, atol=1e-5)
    assert torch.equal(tiny(model), y)
    remove(model)
    assert torch.equal(tiny(model), tiny(stock))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    assert all(torch.equal(v, stock.state_dict()[k]) for k, v in model.state_dict().items())
    for one, other in zip(model.modules(), stock.modules(), strict=True):
        assert type(one) is type(other) and one.__dict__.keys() == other.__dict__.keys()
        assert len(one._forward_hooks) == len(other._forward_hooks)
        assert len(one._forward_pre_hooks) == len(other._forward_pre_hooks)
    assert all(a.requires_grad == b.requires_grad for a, b in zip(model.parameters(), stock.parameters(), strict=True))


@each_case
def test_copies_and_stock_checkpoints(case: Case):
    tiny, model = MODELS[case.model], adapted(case).eval()
    perturb(model)
    y = tiny(model)
    assert torch.equal(tiny(copy.deepcopy(model)), y)
    assert torch.equal(tiny(pickle.loads(pickle.dumps(model))), y)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    stock = tiny.model().state_dict()
    model.load_state_dict(stock)  # strictly
    assert all(torch.equal(model.state_dict()[key], value) for key, value in stock.items())
    with pytest.raises(RuntimeError, match="nonsense"):
        model.load_state_dict(stock | {"nonsense": torch.zeros(1)})


@each_case
def test_scale_goes_from_the_frozen_to_the_adapted_model(case: Case):
    tiny, model = MODELS[case.model], adapted(case).eval()
    perturb(model)
    if case.method in ("full", "vpt", "noah", "textual_inversion"):
        with pytest.raises(PeftError):
            set_scale(model, 0.5)
        return
    with disabled(model):
        frozen = tiny(model)
    y = tiny(model)
    set_scale(model, 0.5)
    half = tiny(model)
    assert case.method == "linear" or not (torch.allclose(half, y) or torch.allclose(half, frozen))
    set_scale(model, 1.0)
    assert torch.equal(tiny(model), y)


@pytest.mark.parametrize("case", [c for c in cases() if c.model in ("vit", "clip", "unet", "clip_text_model")], ids=str)
def test_bfloat16_base_keeps_float32_adapters(case: Case):
    tiny = MODELS[case.model]
    model = adapt(tiny.model().bfloat16(), case.method, **dict(case.hyper)).train()
    assert all(p.dtype == torch.float32 for k, p in model.named_parameters() if is_inserted(k))
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tiny.batch().items()}
    tiny.prepare(model)
    y = tiny.out(model(**batch))
    assert y.dtype == torch.bfloat16
    if any(p.requires_grad for p in model.parameters()):
        loss(y.float()).backward()


@pytest.mark.parametrize("case", [c for c in cases() if c.model in ("vit", "clip_image")], ids=str)
def test_compiles_to_one_graph(case: Case):
    tiny, model = MODELS[case.model], adapted(case).eval()
    perturb(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = tiny(compiled)
    torch.testing.assert_close(y, tiny(model), rtol=1e-4, atol=1e-5)
    if case.method == "linear" and case.model not in CLASSIFIERS:
        return
    grads = []
    for run in (compiled, model):
        model.zero_grad(set_to_none=True)
        loss(tiny(run)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="inductor needs a C++ compiler")
def test_inductor_trains_lora():
    tiny = MODELS["vit"]
    model = adapt(tiny.model(), "lora", rank=2).train()
    perturb(model)
    torch._dynamo.reset()
    grads = []
    for run in (torch.compile(model, fullgraph=True), model):
        model.zero_grad(set_to_none=True)
        loss(tiny(run)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
