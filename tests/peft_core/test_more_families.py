"""Hierarchical, convolutional and relative-position models: a few methods on each, and sentences for what they lack."""

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    HieraConfig,
    HieraForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from peft_core import PeftError, adapt, count_parameters
from peft_core.anatomies import anatomy_of, describe
from peft_core.method import Method, Plan
from peft_core.registry import make_method
from peft_core.testing import check, lacks
from tests.tiny import Tiny, pictures


def loud(model: nn.Module) -> nn.Module:
    """With a head that is not zero, as some of timm's start."""
    head: Any = model.get_classifier()  # type: ignore[operator]
    nn.init.normal_(head.weight, std=0.5)
    return model


def of_timm(name: str, size: int = 32, exact: bool = True, **changes: Any) -> Tiny:
    return Tiny(lambda: loud(timm.create_model(name, num_classes=5, **changes)), pictures(size=size), exact=exact)


SMALL: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
STAGES: dict[str, Any] = dict(embed_dim=16, depths=(1, 2), num_heads=(2, 4), drop_path_rate=0.0)
HIERA = HieraConfig(
    image_size=[64, 64], embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 4], num_query_pool=2, num_labels=5
)
SWIN = SwinConfig(
    image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4, num_labels=5
)
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5, layer_scale_init_value=0.5)
# a mask that is frozen lets torch choose another kernel than one that trains: equal to the last bit but one
FAMILIES = {
    "swinv2": of_timm("swinv2_tiny_window8_256", 64, img_size=64, window_size=4, **STAGES),
    "beit": of_timm("beit_base_patch16_224", **SMALL, exact=False),
    "relpos": of_timm("vit_relpos_small_patch16_224", **SMALL, exact=False),
    "relpos_behind": of_timm("vit_srelpos_small_patch16_224", **SMALL, exact=False),
    "naflex": of_timm("naflexvit_base_patch16_gap", embed_dim=24, depth=2, num_heads=2),
    "hiera": of_timm("hiera_tiny_224", 64, img_size=(64, 64), embed_dim=16, stages=(1, 1, 1, 1), drop_path_rate=0.0),
    "convnext": of_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "convnextv2": of_timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "convnext_linear": of_timm("convnext_tiny", depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), ls_init_value=0.5),
    "resnet": of_timm("test_resnet", 64),
    "mobilenet": of_timm("mobilenetv3_small_050", 64, drop_rate=0.0),
    "parallel": of_timm("vit_small_patch16_18x2_224", **SMALL),
    "cait": of_timm("cait_xxs24_224", init_values=0.5, **SMALL),
    "hf_swin": Tiny(lambda: SwinForImageClassification(SWIN), pictures("pixel_values"), lambda y: y.logits, exact=False),
    "hf_hiera": Tiny(lambda: HieraForImageClassification(HIERA), pictures("pixel_values", 64), lambda y: y.logits),
    "hf_convnext": Tiny(
        lambda: ConvNextForImageClassification(CONVNEXT), pictures("pixel_values"), lambda y: y.logits
    ),
}  # fmt: skip
METHODS = {"lora": {"rank": 2}, "bitfit": {}, "ssf": {}, "adaptformer": {"bottleneck": 8, "dropout": 0.0}}
BY_LAYERS = ("convnext", "convnextv2", "resnet", "mobilenet", "parallel", "cait", "hf_hiera")
SINGLE = ("convnext_linear", "hf_convnext")
"""Of one residual step a block, on pictures whose channels come first."""


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_methods(name: str, method: str):
    refusal = check(FAMILIES[name], make_method(method, **METHODS[method]))
    if method == "adaptformer" and name in BY_LAYERS:
        assert refusal is not None and "known by its layers alone" in refusal
    else:
        assert refusal is None


JOINING: dict[str, dict[str, Any]] = {
    "adapter": {"bottleneck": 4, "position": "houlsby"}, "lo_rand": {"rank": 2}, "mona": {"bottleneck": 4, "dropout": 0.0},
    "conv_pass": {"bottleneck": 4, "dropout": 0.0}, "rep_adapter": {"bottleneck": 4, "groups": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("method", JOINING)
def test_what_joins_residual_steps_joins_convnexts(name: str, method: str):
    made = make_method(method, **JOINING[method])
    assert check(FAMILIES[name], made) is None
    with pytest.raises(PeftError, match="says of no attn where it can be joined"):
        adapt(FAMILIES[name].model(), "sct")


@pytest.mark.parametrize("name", SINGLE)
def test_a_branch_reads_the_picture_before_the_block_and_is_added_behind_its_scale(name: str):
    family = FAMILIES[name]
    model = adapt(family.model(), "adaptformer", bottleneck=4, dropout=0.0).eval()
    path = family.anatomy.blocks[None][1]
    block: Any = model.get_submodule(path)
    change = block.drop_path.peft.adaptformer.mlp_branch.change
    nn.init.normal_(change.up.weight)
    seen: dict[str, Any] = {}
    block.register_forward_hook(lambda module, args, y: seen.update(x=args[0], y=y))
    family(model)
    stock = family.model().eval().get_submodule(path)
    want = stock(seen["x"]) + change(seen["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen["y"], want)


@pytest.mark.parametrize("name", FAMILIES)
def test_places_are_called(name: str):
    """Every module of a place gets its input in a forward, but for those that say they are read."""
    family, seen = FAMILIES[name], set()
    model = family.model().eval()
    for path in {place.module for place in family.anatomy.places if place.called}:
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.add(path))
    family(model)
    assert seen == {place.module for place in family.anatomy.places if place.called}


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_refused_in_a_sentence(name: str):
    for method in ("vpt", "lst") if name in BY_LAYERS + SINGLE else ("vpt",):
        with pytest.raises(PeftError, match="cannot take extra tokens|needs one stream all through"):
            adapt(FAMILIES[name].model(), method)


@dataclass(frozen=True, kw_only=True)
class Joined(Method):
    def install(self, plan: Plan) -> None:
        for sublayer, _, dim in plan.sublayers(("attn",), 1):
            plan.add_branch(sublayer, nn.Linear(dim, dim))


@pytest.mark.parametrize("name", ["swinv2", "hf_swin"])
def test_branches_join_the_whole_stream_beside_attention_by_windows(name: str):
    """x ← x + attention(windows of x) + branch(x), where branch reads the picture before it is cut."""
    family = FAMILIES[name]
    stock, model = family.model().eval(), adapt(family.model(), Joined()).eval()
    step = family.anatomy.sublayers[0]
    path = family.anatomy.blocks[None][0]
    seen: dict[str, Any] = {}
    for which, each in (("stock", stock), ("joined", model)):
        each.get_submodule(step.gate or "").register_forward_hook(
            lambda module, args, y, which=which: seen.__setitem__(which, y)
        )
        each.get_submodule(path).register_forward_pre_hook(
            lambda module, args, which=which: seen.__setitem__(f"{which} x", args[0])
        )
        family(each)
    change: Any = model.get_submodule(step.gate or "").peft.joined.attn_branch.change  # type: ignore[union-attr]
    torch.testing.assert_close(seen["joined"], seen["stock"] + change(seen["joined x"]))


def test_roles_of_layers_without_a_file_of_their_own():
    anatomy = FAMILIES["convnext"].anatomy
    assert anatomy.default_targets == ("fc1", "fc2") and {"conv", "norm"} < anatomy.roles()
    assert anatomy.blocks[None] == ["stages.0.blocks.0", "stages.1", "stages.2", "stages.3"]
    resnet = FAMILIES["resnet"].anatomy
    assert resnet.roles() == {"conv", "norm"} and resnet.heads == ["fc"]
    last = adapt(FAMILIES["resnet"].model(), "lora", rank=2, blocks=[len(resnet.blocks[None]) - 1])
    assert (
        0
        < count_parameters(last).inserted
        < count_parameters(adapt(FAMILIES["resnet"].model(), "lora", rank=2)).inserted
    )
    assert lacks(make_method("vpt"), resnet) == "tokens" and describe(nn.Linear(2, 2)) is None


def test_beside_a_convolution_over_single_pixels_stands_nothing():
    with pytest.raises(PeftError, match="cannot stand beside fc1 at .*: it is no linear layer that is called"):
        adapt(FAMILIES["convnext"].model(), "adapter", position="linears")


def test_batch_norm_of_a_frozen_convolutional_model_stays_in_eval():
    model = adapt(FAMILIES["resnet"].model(), "lora", rank=2).train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    FAMILIES["resnet"](model)
    assert before and all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_layer_is_left_out_whose_owner_reads_its_weight():
    places = {place.module for place in anatomy_of(timm.create_model("resnetv2_50x1_bit", num_classes=5)).places}
    assert places and not any("stem.conv" in place for place in places)  # standardised, not the weight itself


def test_a_model_of_standardised_convolutions_alone_still_trains_what_is_stock():
    model = adapt(timm.create_model("nf_resnet26", num_classes=5), "bitfit")
    assert any(p.requires_grad for key, p in model.named_parameters() if not key.startswith("head"))
    with pytest.raises(PeftError, match="lora finds no place to work on"):
        adapt(timm.create_model("nf_resnet26", num_classes=5), "lora")
