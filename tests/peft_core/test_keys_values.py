"""Further keys and values: the attention of every family by hand, masks and causality, and refusals."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from peft_core import PeftError, adapt, disabled, remove, set_scale
from peft_core.grafts.attention import KeysValues
from peft_core.method import Method, Plan
from tests.tiny import MODELS, text_model, unet, vit


class Fixed(nn.Module):
    """The same keys and values for every sample, or with `each` a batch's own."""

    def __init__(self, width: int, count: int = 2, each: int | None = None) -> None:
        super().__init__()
        shape = (2, count, width) if each is None else (2, each, count, width)
        self.values = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(4)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.values.unbind(0)


class Extends(Method):
    apart: bool = False
    each: int | None = None
    kinds: tuple[str, ...] = ("attn", "cross_attn")

    def install(self, plan: Plan) -> None:
        for step, _, _ in plan.sublayers(self.kinds, 1):
            plan.extend_keys_values(step, Fixed(plan.key_width(step), each=self.each), apart=self.apart)


def extended(model: nn.Module, apart: bool = False, each: int | None = None) -> nn.Module:
    method = Extends()
    object.__setattr__(method, "apart", apart)
    object.__setattr__(method, "each", each)
    return adapt(model.eval(), method, name="more")


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, graft: KeysValues, mask: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """softmax(q [K; k]ᵀ/√d + [0, mask]) [V; v], or the sum of two attentions; q, k, v are B H N d."""
    more = [t.expand(len(q), -1, -1) if t.dim() == 2 else t for t in graft.make(torch.empty(0))]
    more = [t.unflatten(-1, (-1, q.shape[-1])).transpose(1, 2) for t in more]
    more = [t.repeat_interleave(k.shape[1] // t.shape[1], 1) for t in more]

    def attend(k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return (scores if mask is None else scores + mask).softmax(-1) @ v

    if graft.apart:
        return attend(k, v, mask) + factor * attend(more[0], more[1], None)
    mask = None if mask is None else F.pad(mask, (more[0].shape[2], 0))
    return attend(torch.cat((more[0], k), 2), torch.cat((more[1], v), 2), mask)


def graft_of(attention: Any) -> KeysValues:
    return attention.peft.more.keys_values


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("each", [None, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_timm(apart: bool, each: int | None, fused: bool):
    model = extended(vit(qk_norm=True)(), apart, each)
    attention, x = model.blocks[0].attn, torch.randn(2, 5, 48)
    attention.fused_attn = fused
    q, k, v = attention.qkv(x).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    expected = attention.proj(by_hand(q, k, v, graft_of(attention)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)
    causal = torch.full((5, 5), float("-inf")).triu(1)
    expected = attention.proj(by_hand(q, k, v, graft_of(attention), causal).transpose(1, 2).flatten(2))
    for masks in (
        dict(is_causal=True),
        dict(attn_mask=causal),
        dict(attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()),
    ):
        torch.testing.assert_close(attention(x, **masks), expected, rtol=1e-5, atol=1e-5)
    with disabled(model):
        assert attention.fused_attn is fused
    remove(model)
    assert type(attention) is timm.layers.Attention and attention.fused_attn is fused


@pytest.mark.parametrize("groups", [None, 1])
def test_rotary_positions_turn_the_models_own_keys_only(groups: int | None):
    name = "vit_base_patch16_sapiens2" if groups else "vit_small_patch16_dinov3"
    more = dict(num_kv_heads=groups) if groups else {}
    model = extended(timm.create_model(name, img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=5, **more))
    attention, seen = model.blocks[0].attn, {}
    real = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.update(q=q, k=k, v=v, y=real(q, k, v, *args, **kwargs))
        return seen["y"]

    x = torch.randn(2, 3, 32, 32)
    with disabled(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        model(x)
    q, k, v = seen["q"], seen["k"], seen["v"]
    heads = []
    attention.norm.register_forward_pre_hook(lambda _, args: heads.append(args[0]))
    model(x)
    torch.testing.assert_close(heads[-1], by_hand(q, k, v, graft_of(attention)).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("apart", [False, True])
def test_multihead_attention(apart: bool):
    model = extended(MODELS["clip_image"].model(), apart)
    attention, x = model.transformer.resblocks[0].attn, torch.randn(2, 5, 64)
    q, k, v = (
        F.linear(x, attention.in_proj_weight, attention.in_proj_bias).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
    )
    mask = torch.full((5, 5), float("-inf")).triu(1)
    expected = attention.out_proj(by_hand(q, k, v, graft_of(attention), mask).transpose(1, 2).flatten(2))
    for weights in (False, True):
        y, shares = attention(x, x, x, need_weights=weights, attn_mask=mask)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert shares.shape == (2, 5, 5)
    with disabled(model):
        torch.testing.assert_close(
            attention(x, x, x)[0], MODELS["clip_image"].model().transformer.resblocks[0].attn(x, x, x)[0]
        )
    remove(model)
    assert type(attention) is nn.MultiheadAttention


def test_transformers_with_a_causal_mask():
    model = extended(MODELS["clip_text_model"].model())
    (attention,) = [m for m in model.modules() if type(m).__name__ == "AdaptedCLIPAttention"][:1]
    x = torch.randn(2, 7, 32)
    q, k, v = (
        p(x).unflatten(-1, (2, 16)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mask = torch.full((7, 7), float("-inf")).triu(1)
    expected = attention.out_proj(by_hand(q, k, v, graft_of(attention), mask).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(hidden_states=x, attention_mask=mask[None, None])[0], expected)
    with pytest.raises(PeftError, match="attn_implementation sdpa"):
        eager = text_model()
        eager.set_attn_implementation("eager")
        extended(eager)
    model.set_attn_implementation("eager")
    with pytest.raises(PeftError, match="attended without scaled_dot_product_attention"):
        MODELS["clip_text_model"](model)


@pytest.mark.parametrize("apart", [False, True])
def test_diffusers_cross_attention(apart: bool):
    model = extended(MODELS["unet"].model(), apart)
    attention = model.mid_block.attentions[0].transformer_blocks[0].attn2
    x, text = torch.randn(2, 9, 32), torch.randn(2, 5, 24)
    q, k, v = (
        p(z).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for p, z in ((attention.to_q, x), (attention.to_k, text), (attention.to_v, text))
    )
    expected = attention.to_out[0](by_hand(q, k, v, graft_of(attention)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, encoder_hidden_states=text), expected, rtol=1e-5, atol=1e-5)
    if apart:
        set_scale(model, 0.5)
        expected = attention.to_out[0](by_hand(q, k, v, graft_of(attention), factor=0.5).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(x, encoder_hidden_states=text), expected, rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(PeftError, match="scale is 0 or 1"):
            set_scale(model, 0.5)
    from diffusers.models.attention_processor import SlicedAttnProcessor

    sliced = unet()
    sliced.set_attn_processor(SlicedAttnProcessor(1))
    with pytest.raises(PeftError, match="AttnProcessor2_0"):
        extended(sliced)


def test_windows_keep_their_relative_positions():
    make = dict(img_size=56, embed_dim=12, depths=(2,), num_heads=(2,), num_classes=5)
    model = extended(timm.create_model("swin_tiny_patch4_window7_224", **make))
    attention, x, mask = model.layers[0].blocks[1].attn, torch.randn(8, 49, 12), model.layers[0].blocks[1].attn_mask
    q, k, v = attention.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
    bias = attention._get_rel_pos_bias() + mask.repeat(2, 1, 1)[:, None]
    expected = attention.proj(by_hand(q, k, v, graft_of(attention), bias).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, mask=mask), expected, rtol=1e-5, atol=1e-5)


def test_picture_and_text_of_an_mmdit_see_them():
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, qk_norm="rms_norm",
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4, pos_embed_max_size=96,
    )  # fmt: skip
    extended(model)
    attention, x, text = model.transformer_blocks[0].attn, torch.randn(2, 6, 32), torch.randn(2, 3, 32)
    parts = [
        [attention.to_q, attention.add_q_proj],
        [attention.to_k, attention.add_k_proj],
        [attention.to_v, attention.add_v_proj],
    ]
    norms = [
        [attention.norm_q, attention.norm_added_q],
        [attention.norm_k, attention.norm_added_k],
        [nn.Identity()] * 2,
    ]
    q, k, v = (
        torch.cat([n(p(z).unflatten(-1, (4, 8)).transpose(1, 2)) for n, p, z in zip(n2, p2, (x, text), strict=True)], 2)
        for n2, p2 in zip(norms, parts, strict=True)
    )
    both = by_hand(q, k, v, graft_of(attention)).transpose(1, 2).flatten(2)
    picture, words = attention(hidden_states=x, encoder_hidden_states=text)
    torch.testing.assert_close(picture, attention.to_out[0](both[:, :6]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(words, attention.to_add_out(both[:, 6:]), rtol=1e-5, atol=1e-5)


def test_unknown_attention_is_refused():
    model = vit(depth=1)()
    model.blocks[0].attn = type("Own", (nn.Module,), {})()
    model.blocks[0].attn.qkv = nn.Linear(48, 144)
    with pytest.raises(PeftError, match="nothing is known of how a Own attends"):
        extended(model)
