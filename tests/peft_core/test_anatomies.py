"""Anatomies: streams, residual steps and towers as each family has them, and sentences for what is no model by itself."""

import json

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from peft_core import NotMergeable, PeftError, adapt, count_parameters, load_adapter, merge, save_adapter
from peft_core.anatomies import Anatomy, anatomy_of, describe, families
from peft_core.grafts.graft import Delta
from peft_core.method import Method, Plan
from tests.tiny import MODELS, clip, unet, vit

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def timm_model(name: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **(dict(img_size=32, embed_dim=48, depth=2, num_heads=3) | changes))


def moved(model: nn.Module, size: float = 0.05) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * size
    return model


def test_streams():
    (stream,) = anatomy_of(vit("vit_small_patch14_reg4_dinov2")()).streams.values()
    assert (stream.width, stream.prefix, stream.grid, stream.patch, stream.takes_tokens) == (48, 5, (4, 4), 8, True)
    streams = anatomy_of(clip()()).streams
    assert streams["image"].grid == (4, 4) and streams["image"].prefix == 1 and streams["image"].takes_tokens
    assert streams["text"].causal and streams["text"].grid is None and not streams["text"].takes_tokens
    widths = {stream.width for stream in anatomy_of(unet()).streams.values()}
    assert widths == {16, 32} and all(s.tokens_refused for s in anatomy_of(unet()).streams.values())
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1), num_heads=(2, 4))
    assert [(s.width, s.grid) for s in anatomy_of(swin).streams.values()] == [(12, (14, 14)), (24, (7, 7))]
    with pytest.raises(PeftError, match="windows are cut from a grid"):
        adapt(swin, "vpt")


@pytest.mark.parametrize("name", list(MODELS))
def test_paths_exist_and_readers_get_the_normed_input(name: str):
    model = MODELS[name].model()
    for step in anatomy_of(model).sublayers:
        inside = step.body.rpartition(".")[0]
        assert all(path.startswith(inside) for path in step.into)
        for path in (step.norm, step.body, step.out, step.entry, *step.into, *([step.gate] if step.gate else [])):
            model.get_submodule(path)


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "eva02_enormous_patch14_clip_224"])
def test_blocks_with_norms_behind_keep_their_own_structure(name: str):
    """x ← x + drop(norm(mlp x)) + branch(x), and in series x + y + adapter(y) with y = drop(norm(mlp x))."""
    model, x = timm_model(name, depth=1), torch.randn(2, 5, 48)
    stock = timm_model(name, depth=1).blocks[0]
    moved(adapt(model, "adaptformer", bottleneck=4, dropout=0.0))
    block = model.blocks[0]
    change = block.drop_path2.peft.adaptformer.mlp_branch.change
    middle = x + stock.norm1(stock.attn(x))
    torch.testing.assert_close(block(x), middle + stock.norm2(stock.mlp(middle)) + change(middle))
    model = timm_model(name, depth=1)
    moved(adapt(model, "adapter", bottleneck=4))
    y = stock.norm2(stock.mlp(middle))
    change = model.blocks[0].drop_path2.peft.adapter.output.change
    torch.testing.assert_close(model.blocks[0](x), middle + y + change(y))
    with pytest.raises(PeftError, match="norms behind"):
        adapt(timm_model(name, depth=1), "aim")


def test_serial_adapters_stand_behind_layer_scale():
    """x ← x + γ F(x) + s·Up(act(Down(γ F(x)))): γ does not shrink what the adapter adds."""
    model = moved(
        adapt(timm_model("vit_tiny_patch16_224", init_values=0.01), "adapter", bottleneck=4, position="houlsby")
    )
    model.eval()
    block, x = model.blocks[0], torch.randn(2, 5, 48)
    stock = timm_model("vit_tiny_patch16_224", init_values=0.01).eval().blocks[0]
    y = stock.ls1(stock.attn(stock.norm1(x)))
    x1 = x + y + block.drop_path1.peft.adapter.output.change(y)
    y = stock.ls2(stock.mlp(stock.norm2(x1)))
    torch.testing.assert_close(block(x), x1 + y + block.drop_path2.peft.adapter.output.change(y))


@pytest.mark.parametrize("method", ["bitfit", "full", "layer_norm", "diff_fit"])
def test_a_tower_is_the_same_set_wherever_its_parts_stand(method: str):
    vision = dict(image_size=32, layers=2, width=64, head_width=16, patch_size=8)
    words = dict(context_length=12, vocab_size=100, width=32, heads=2, layers=2)
    found = []
    for cls in (open_clip.CLIP, open_clip.CustomTextCLIP):
        model = adapt(cls(embed_dim=16, vision_cfg=vision, text_cfg=words), method, tower="text")
        found.append({k.removeprefix("text.") for k, p in model.named_parameters() if p.requires_grad})
    assert found[0] == found[1] and "ln_final.bias" in found[0] and not any("visual" in key for key in found[0])
    assert ("text_projection" in found[0]) == ("positional_embedding" in found[0]) == (method == "full")


def test_a_shift_reaches_the_output_of_norms_without_a_bias():
    """aimv2's RMS norms: y ← γ y + β, β with a gradient and an effect; there is no bias to merge it into."""
    model = timm_model("aimv2_large_patch14_224", img_size=28)
    stock = timm_model("aimv2_large_patch14_224", img_size=28)
    moved(adapt(model, "ssf", targets=("norm1",)))
    graft, x = model.blocks[0].norm1.peft.ssf.norm1, torch.randn(2, 5, 48)
    torch.testing.assert_close(model.blocks[0].norm1(x), graft.gamma * stock.blocks[0].norm1(x) + graft.beta)
    model(torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for k, p in model.named_parameters() if "peft" in k)
    with pytest.raises(NotMergeable):
        merge(model)


def test_hybrids_have_no_patch_embedding_of_their_own():
    model = adapt(timm_model("vit_base_mci_224", img_size=64, embed_dim=768, depth=1, num_heads=12), "lora")
    assert count_parameters(model).inserted > 0 and "patch_embed" not in anatomy_of(model).roles()


class Wrapped(nn.Module):
    """A model of nobody's family that says itself what stands where."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.top = vit(num_classes=0)(), nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.trunk(x))

    def peft_anatomy(self) -> Anatomy:
        inner = describe(self.trunk)
        assert inner is not None
        anatomy = inner.under("trunk")
        anatomy.heads = ["top"]
        return anatomy


def test_a_model_states_its_own_anatomy(tmp_path):
    model = moved(adapt(Wrapped(), "lora", rank=2).eval())
    assert {k.partition(".")[0] for k, p in model.named_parameters() if p.requires_grad} == {"trunk", "top"}
    assert model.top[0].weight.requires_grad
    fresh = Wrapped()
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "peft" not in k})
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(fresh.eval(), tmp_path)(PICTURES), model(PICTURES))
    assert json.loads((tmp_path / "adapter.json").read_text(encoding="utf-8"))["adaptations"][0]["method"] == "lora"


def test_models_inside_others_are_named():
    wrapped = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=32)
    with pytest.raises(PeftError, match="give the module inside, model.model"):
        adapt(wrapped, "bitfit")
    with pytest.raises(PeftError, match="give the module inside"):
        save_adapter(wrapped, "never_written")
    for wrapped in (torch.compile(vit()(), backend="eager"), nn.DataParallel(vit()())):
        with pytest.raises(PeftError, match="module inside"):
            adapt(wrapped, "bitfit")
    with pytest.raises(PeftError, match="known by its layers alone"):
        adapt(timm_model("vit_base_patch16_xp_224"), "adaptformer")  # of parallel attention and MLP
    assert anatomy_of(timm_model("vit_base_patch16_xp_224")).default_targets == ("linear",)
    assert "classified" not in families()
    with pytest.raises(PeftError, match=r"peft_anatomy\(\)"):
        adapt(nn.Linear(2, 2), "lora")


def test_an_unknown_tower_is_named_and_the_other_can_be_had():
    vision = dict(layers=(1, 1, 1, 1), width=8, image_size=32, head_width=16)
    words = dict(context_length=12, vocab_size=100, width=32, heads=2, layers=2)
    model = open_clip.CLIP(16, vision, words)
    model.visual = nn.Sequential(model.visual)
    with pytest.raises(PeftError, match='Sequential: adapt the other one alone, tower="text"'):
        adapt(model, "lora")
    adapt(model, "lora", rank=2, tower="text")
    assert count_parameters(model).inserted == 2 * 2 * (2 * 32 + 2 * 32)


def test_a_convolutional_tower_beside_a_text_tower():
    vision = dict(layers=(1, 1, 1, 1), width=8, image_size=32, head_width=16)
    words = dict(context_length=12, vocab_size=100, width=32, heads=2, layers=2)
    model = open_clip.CLIP(16, vision, words)
    with pytest.raises(
        PeftError, match='the image tower of this open_clip model is known by its layers alone.*tower="text"'
    ):
        adapt(model, "adaptformer")
    x = PICTURES
    before = model.eval().encode_image(x)
    adapt(model, "lora", rank=2, targets=("conv", "q", "v", "proj"))
    torch.testing.assert_close(model.encode_image(x), before)
    moved(model)
    (model.encode_image(x).square().sum() + model.encode_text(torch.ones(2, 12, dtype=torch.long)).sum()).backward()
    pooled = [p for key, p in model.named_parameters() if "attnpool" in key and "peft" in key]  # read, never called
    assert pooled and all(p.grad is not None and p.grad.abs().sum() > 0 for p in pooled)
    y = model.encode_image(x)
    torch.testing.assert_close(merge(model).encode_image(x), y, rtol=1e-4, atol=1e-5)


class ForUNets(Method):
    suits = ("diffusers UNet",)

    def install(self, plan: Plan) -> None:
        raise AssertionError("asked for a model that it does not suit")


def test_a_method_says_what_it_suits():
    with pytest.raises(PeftError, match="works on a diffusers UNet, not on this timm ViT"):
        adapt(vit()(), ForUNets())


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "oft", "ia3", "ssf"])
@pytest.mark.parametrize(("model", "role"), [("vit", "norm1"), ("unet", "norm"), ("clip_text_model", "token_embed")])
def test_a_weight_change_where_it_cannot_act_is_refused_before_anything_changes(model: str, role: str, method: str):
    tiny = MODELS[model]
    made, settings = tiny.model(), {"feedforward": (role,)} if method == "ia3" else {"targets": (role,)}
    if (method, role) in (("ssf", "norm1"), ("ssf", "norm")):
        return
    with pytest.raises(PeftError, match=f"{method} cannot change {role} at "):
        adapt(made, method, **settings)
    assert not any("peft" in key for key in made.state_dict()) and all(p.requires_grad for p in made.parameters())


class Choosy(Delta):
    """A change that takes one layer and refuses every other."""

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        return None if weight.shape == (48, 192) else "it was made for another shape"

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros(1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.by)


class ByChoosy(Method):
    role: str = "fc2"

    def install(self, plan: Plan) -> None:
        for place, _ in plan.places((self.role,)):
            plan.change_weight(place, Choosy())


def test_a_change_says_what_it_accepts():
    assert count_parameters(adapt(vit(depth=2)(), ByChoosy())).inserted == 2
    method, model = ByChoosy(), vit()()
    object.__setattr__(method, "role", "fc1")
    with pytest.raises(PeftError, match="cannot change fc1 at blocks.0.mlp.fc1: it was made for another shape"):
        adapt(model, method)
    assert not any("peft" in key for key in model.state_dict())
