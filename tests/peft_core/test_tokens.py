"""Tokens on rotary models, on such with registers or without a class token: at any size of picture, and shown by no feature."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from peft_core import PeftError, adapt
from peft_core.attach import grafts_named
from peft_core.registry import find_method, list_methods
from peft_core.testing import perturb
from tests.tiny import MODELS, SWIN

SIZES: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=48, num_heads=3, depth=2, num_classes=5)
ROTARY = ("vit_small_patch16_dinov3", "eva02_base_patch14_224", "eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384",
          "vit_small_patch16_rope_mixed_224", "vit_medium_patch16_rope_reg1_gap_256")  # fmt: skip
OTHERS = ("vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224", "vit_base_patch16_siglip_gap_224")
PROMPTS = [name for name in list_methods() if "tokens" in find_method(name).needs
           and find_method(name).__module__.startswith("peft_core.methods.prompts.")]  # fmt: skip
WIDE, TALL = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 24)


def build(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **(SIZES | {"dynamic_img_size": True} | changes)).eval()


class Beside(nn.Module):
    """A block with prompts among the tokens that its attention turns not: what a stock model with a longer prefix does."""

    def __init__(self, block: Any, prompts: Tensor, carried: "Beside | None") -> None:
        super().__init__()
        self.block, self.prompts, self.carried = block, prompts, carried
        self.prefix = getattr(block.attn, "num_prefix_tokens", None)
        if self.prefix is not None:
            block.attn.num_prefix_tokens += len(prompts)

    def forward(self, x: Tensor, prefix: int, **given: Any) -> Tensor:
        prompts = self.prompts.expand(len(x), -1, -1) if self.carried is None else self.carried.left
        y = self.block(torch.cat((x[:, :prefix], prompts, x[:, prefix:]), 1), **given)
        end = prefix + len(self.prompts)
        self.left = y[:, prefix:end]
        return torch.cat((y[:, :prefix], y[:, end:]), 1)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", ROTARY + OTHERS)
def test_prompts_are_a_longer_prefix_that_no_feature_shows(name: str, deep: bool) -> None:
    model = adapt(build(name), "vpt", tokens=3, deep=deep)
    perturb(model)
    model.eval()
    stock = build(name)
    stock.load_state_dict({key: value for key, value in model.state_dict().items() if "peft" not in key.split(".")})
    prompts = [g.tokens for _, _, g in grafts_named(model, "vpt") if getattr(g, "tokens", None) is not None]
    for index, block in enumerate(stock.blocks):
        made = Beside(block, prompts[index if deep else 0], stock.blocks[0] if index and not deep else None)
        stock.blocks[index] = made
        made.forward = lambda x, made=made, **given: Beside.forward(made, x, stock.num_prefix_tokens, **given)  # type: ignore
    for x in (WIDE, TALL):
        torch.testing.assert_close(model(x), stock(x))
        last, seen = model.forward_intermediates(x)
        expected_last, expected = stock.forward_intermediates(x)
        torch.testing.assert_close([last, *seen], [expected_last, *expected])
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
        if hasattr(model, "get_intermediate_layers"):
            given = model.get_intermediate_layers(x, n=2, reshape=True, return_prefix_tokens=True)
            torch.testing.assert_close(
                given, stock.get_intermediate_layers(x, n=2, reshape=True, return_prefix_tokens=True)
            )


@pytest.mark.parametrize("method", PROMPTS)
def test_all_prompts_run_on_rotary_models_of_any_size(method: str) -> None:
    x = WIDE if "grid" in find_method(method).needs else TALL  # those keep to the model's own size
    for name in ROTARY[:2]:
        stock = build(name)
        shapes = [y.shape for y in stock.forward_intermediates(x)[1]]
        model = adapt(stock, next(iter(find_method(method).examples()))).eval()
        assert model(x).shape == (2, 5) and [y.shape for y in model.forward_intermediates(x)[1]] == shapes
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_gap_224", "vit_medium_patch16_rope_reg1_gap_256", "norm"])
def test_a_mean_over_the_prompts_too_shows_them_in_no_feature(name: str) -> None:
    changes = dict(class_token=False, global_pool="avg", fc_norm=False)  # its norm stands before the mean
    model = build("vit_tiny_patch16_224", **changes) if name == "norm" else build(name)
    shapes = [y.shape for y in model.forward_intermediates(TALL)[1]]
    adapt(model, "vpt", tokens=3, pool_prompts=True).eval()
    assert [y.shape for y in model.forward_intermediates(TALL)[1]] == shapes
    kept: list[Tensor] = []
    model.blocks[1].mlp.register_forward_hook(lambda module, args, y: kept.append(y))
    stripped: list[Tensor] = []
    model.blocks[1].drop_path2.register_forward_pre_hook(lambda module, args: stripped.append(args[0]))
    last = model.blocks[1].norm2.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    y = model(TALL)
    last.remove()
    whole = kept[0] + stripped[-1]  # all tokens behind the last block, prompts included
    mean = model.norm(whole)[:, model.num_prefix_tokens :].mean(1)
    norm = model.fc_norm
    if isinstance(norm, nn.LayerNorm):
        mean = nn.functional.layer_norm(mean, mean.shape[-1:], norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(y, model.head(mean))


@pytest.mark.parametrize("method", PROMPTS)
def test_a_model_that_takes_no_tokens_says_so_and_stays(method: str) -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", **SWIN)
    for model, words in ((swin, "windows are cut from a grid"), (MODELS["clip"].model(), "fix the length of a text")):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(PeftError, match=words):
            adapt(model, next(iter(find_method(method).examples())))
        after = model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
