"""Composition, per-block settings and the errors of the public verbs."""

import subprocess
import sys

import open_clip
import pytest
import torch
from torch import nn

from peft_core import NotMergeable, PeftError, adapt, count_parameters, disabled, list_methods, merge, remove, set_scale
from peft_core.grafts.attention import AdaptedAttention
from peft_core.methods.reparameterized.lora import LoRA
from peft_core.passes.prefix import FrozenPrefix
from tests.tiny import MODELS, clip, pictures, vit

VIT = MODELS["vit"]
X = pictures()()["x"]


def move(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_importing_the_core_needs_torch_and_safetensors_only():
    heavy = "timm lightning open_clip diffusers transformers yaml".split()
    code = f"import sys, peft_core; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_methods_have_a_first_line_each():
    assert all(len(line) > 10 for line in list_methods().values())


ORDERS = [
    ("lora", "vpt"),
    ("vpt", "lora"),
    ("vpt", "adaptformer"),
    ("adapter_plus", "ssf"),
    ("ssf", "lora"),
    ("bitfit", "lora"),
]


@pytest.mark.parametrize("first, second", ORDERS)
def test_two_methods_compose_and_come_out_one_by_one(first, second):
    hyper = {"adaptformer": {"bottleneck": 8}}
    model = adapt(adapt(VIT.model().eval(), first), second, **hyper.get(second, {}))
    n = count_parameters(model)
    assert (
        n.inserted
        == sum(n.by_method.values())
        == sum(
            count_parameters(adapt(VIT.model(), method, **hyper.get(method, {}))).inserted for method in (first, second)
        )
    )
    move(model)
    VIT(model).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with disabled(model, first), disabled(model, second):
        frozen = VIT(model)
    remove(model, first)
    assert list(count_parameters(model).by_method) == [second]
    remove(model, second)
    torch.testing.assert_close(VIT(model), frozen, rtol=1e-5, atol=1e-5)


def test_shallow_and_deep_prompts_compose_in_any_order():
    def prompted(*deep: bool) -> torch.Tensor:
        model = VIT.model().eval()
        for flag in deep:
            adapt(model, "vpt", name=f"deep_{flag}".lower(), tokens=3 if flag else 2, deep=flag)
        with torch.no_grad():
            for key, p in sorted(model.named_parameters()):
                if ".tokens" in key:
                    p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        return VIT(model)

    torch.testing.assert_close(prompted(False, True), prompted(True, False), rtol=1e-5, atol=1e-5)


def test_merging_one_of_two_keeps_the_other():
    model = move(adapt(adapt(VIT.model().eval(), "lora"), "vpt"))
    y = VIT(model)
    with pytest.raises(NotMergeable, match="vpt cannot be merged"):
        merge(model)
    assert list(count_parameters(model).by_method) == ["lora", "vpt"]
    merge(model, "lora")
    assert list(count_parameters(model).by_method) == ["vpt"]
    torch.testing.assert_close(VIT(model), y, rtol=1e-5, atol=1e-5)


def test_blocks_and_lists_of_widths():
    per_block = count_parameters(adapt(VIT.model(), "lora", rank=2, targets="qkv")).inserted // 3
    assert (
        count_parameters(adapt(VIT.model(), "lora", rank=2, targets="qkv", blocks=range(1, 3))).inserted
        == 2 * per_block
    )
    assert count_parameters(adapt(VIT.model(), "lora", rank=[0, 2, 4], targets="qkv")).inserted == 3 * per_block
    listed = adapt(VIT.model(), "adapter", bottleneck=[0, 0, 4])
    assert {key.split(".")[1] for key, _ in listed.named_parameters() if ".peft." in key} == {"2"}
    deep = adapt(VIT.model(), "vpt", tokens=[3, 0, 1], deep=True)
    assert count_parameters(deep).inserted == 4 * 48
    assert VIT(deep).shape == (2, 5)
    for method in ("bitfit", "layer_norm", "ssf", "full"):
        trains = adapt(VIT.model(), method, blocks=[2], train_head=False)
        assert {key.split(".")[1] for key, p in trains.named_parameters() if p.requires_grad} == {"2"}


def test_towers():
    model = adapt(clip()(), "lora", tower="text")
    assert all(key.startswith("transformer") for key, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(PeftError, match='no tower "txt", did you mean "text"'):
        adapt(clip()(), "lora", tower="txt")
    everything = adapt(clip()(), "bitfit", tower="image")
    assert all(key.startswith("visual") for key, p in everything.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
def test_adapted_attention_equals_the_stock_class(need_weights, batch_first):
    torch.manual_seed(0)
    tower = open_clip.CLIP(16, dict(image_size=32, layers=1, width=64, head_width=16, patch_size=8),
                           dict(context_length=12, vocab_size=100, width=32, heads=2, layers=1))  # fmt: skip
    stock = nn.MultiheadAttention(64, 4, batch_first=batch_first)
    block = tower.visual.transformer.resblocks[0]
    block.attn = stock
    x, y = torch.randn(3, 5, 64), torch.randn(3, 7, 64) if batch_first else torch.randn(6, 5, 64)
    masks = [None, torch.randn(5, 5) if batch_first else torch.ones(3, 3).triu(1).bool()]
    padding = torch.zeros((3, 5) if batch_first else (5, 3), dtype=torch.bool)
    padding[:, -1] = True
    calls = [dict(attn_mask=m, key_padding_mask=p) for m in masks for p in (None, padding) if m is None or p is None]
    stock.train()
    wanted = [stock(x, x, x, need_weights=need_weights, **call) for call in calls]
    cross = stock(x, y, y, need_weights=need_weights)
    one = stock(x[0], x[0], x[0], need_weights=need_weights)
    adapt(tower, "lora", tower="image")
    assert isinstance(stock, AdaptedAttention)
    got = [stock(x, x, x, need_weights=need_weights, **call) for call in calls]
    for (y1, w1), (y2, w2) in zip(wanted + [cross, one], got + [
        stock(x, y, y, need_weights=need_weights), stock(x[0], x[0], x[0], need_weights=need_weights)
    ], strict=True):  # fmt: skip
        torch.testing.assert_close(y2, y1, rtol=1e-5, atol=1e-5)
        assert (w1 is None and w2 is None) or torch.allclose(w1, w2, atol=1e-6)


def test_rest_of_features_is_the_model():
    for hyper, start in ((dict(blocks=[2]), 2), (dict(rank=[0, 2, 0], targets="q"), 1), ({}, 0)):
        model = move(adapt(VIT.model().eval(), "lora", **hyper))
        prefix = FrozenPrefix(model)
        assert prefix.start == start and prefix.deterministic
        assert torch.equal(prefix.rest(prefix.features(X)), model(X))
    assert FrozenPrefix(adapt(VIT.model(), "linear")).start == 3
    assert FrozenPrefix(adapt(VIT.model(), "bitfit")).start == 0
    dropping = adapt(vit(drop_path_rate=0.1)(), "lora", blocks=[2])
    assert not FrozenPrefix(dropping).deterministic
    with pytest.raises(PeftError, match="cannot run this model from a block on"):
        FrozenPrefix(adapt(MODELS["eva"].model(), "lora"))


def test_vpt_silences_drop_path_and_remove_puts_it_back():
    model = vit(drop_path_rate=0.2, proj_drop_rate=0.1)().train()
    adapt(model, "vpt")
    torch.manual_seed(0)
    assert torch.equal(model(X), model(X))
    remove(model)
    assert model.blocks[2].drop_path1.drop_prob == pytest.approx(0.2) and model.blocks[0].mlp.drop1.p == 0.1


def test_bitfit_scales_between_the_originals_and_the_trained():
    model = move(adapt(VIT.model().eval(), "bitfit"))
    trained = model.blocks[0].norm1.bias.detach().clone()
    original = VIT.model().blocks[0].norm1.bias
    set_scale(model, 0.25)
    torch.testing.assert_close(model.blocks[0].norm1.bias, torch.lerp(original, trained, 0.25))
    set_scale(model, 2.0)
    torch.testing.assert_close(model.blocks[0].norm1.bias, torch.lerp(original, trained, 2.0))
    set_scale(model, 1.0)
    assert torch.equal(model.blocks[0].norm1.bias, trained)


ERRORS = [
    (dict(method="lorra"), 'unknown method "lorra", did you mean "lora"'),
    (dict(method="lora", rnk=3), 'lora has no setting "rnk", did you mean "rank"'),
    (dict(method="lora", targets=("qq",)), 'no role "qq"'),
    (dict(method="lora", rank=0), "lora: rank must be 1 or more, not 0"),
    (dict(method="lora", rank=49), "above the layer's width 48"),
    (dict(method="lora", rank=[1, 2]), "got 2 widths, but the model has 3 blocks"),
    (dict(method="lora", rank=[1, -2, 1]), "lora: rank takes a whole number"),
    (dict(method="lora", dropout=1.0), "dropout must be in [0, 1), not 1.0"),
    (dict(method="lora", blocks=[3]), "names block 3, but the model's blocks are 0 to 2"),
    (dict(method="adapter", activation="gelo"), 'unknown activation "gelo", did you mean "gelu"'),
    (dict(method="vpt", tokens=[1, 2, 3]), "needs deep=True"),
    (dict(method="lora", name="keys"), "cannot be an adaptation's name"),
    (dict(method="ssf", init_std=-1.0), "init_std must be 0 or more, not -1.0"),
    (dict(method="no/such/preset.yaml"), "does not exist"),
]


@pytest.mark.parametrize("call, sentence", ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_one_sentence_and_leaves_the_model_untouched(call, sentence):
    model = VIT.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PeftError, match="."):
        adapt(model, **call)
    try:
        adapt(model, **call)
    except PeftError as error:
        assert sentence in str(error)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and "_peft_record" not in model.__dict__


def test_other_mistakes():
    with pytest.raises(PeftError, match="no anatomy for torch.nn.modules.linear.Linear: known families are"):
        adapt(nn.Linear(2, 2), "lora")
    with pytest.raises(PeftError, match="cannot take extra tokens"):
        adapt(MODELS["clip_text_model"].model(), "vpt")
    with pytest.raises(PeftError, match='already has an adaptation "lora"'):
        adapt(adapt(VIT.model(), "lora"), "lora")
    with pytest.raises(PeftError, match="has no adaptation"):
        remove(VIT.model())
    with pytest.raises(PeftError, match='no adaptation "vpt" here'):
        remove(adapt(VIT.model(), "lora"), "vpt")
    with pytest.raises(PeftError, match="dropout cannot act"):
        adapt(MODELS["eva_fused"].model(), "lora", dropout=0.1)


def test_a_dataclass_and_a_preset_file_do_what_the_name_does(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("method: lora\nrank: 3\ntargets: [q]\n")
    counts = [
        count_parameters(adapt(VIT.model(), method, **hyper)).inserted
        for method, hyper in (("lora", dict(rank=3, targets="q")), (LoRA(rank=3, targets=("q",)), {}), (preset, {}))
    ]
    assert counts[0] == counts[1] == counts[2]
    assert count_parameters(adapt(VIT.model(), preset, rank=6)).inserted == 2 * counts[0]
    preset.write_text("rank: 3\n")
    with pytest.raises(PeftError, match="needs a line `method: NAME`"):
        adapt(VIT.model(), preset)
