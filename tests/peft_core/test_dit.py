"""diffusers' diffusion transformers: weight changes at all of their roles, branches behind the MLP, counts of places."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor

from peft_core import PeftError, adapt, count_parameters
from peft_core.registry import make_method
from peft_core.testing import check
from tests.tiny import MODELS, Tiny


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def grid(rows: int, width: int) -> Tensor:
    return torch.arange(rows * width).view(rows, width).remainder(4).float()


FLUX: dict[str, Any] = dict(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32,
)  # fmt: skip
SPACE: dict[str, Any] = dict(sample_size=8, in_channels=4, out_channels=4, num_layers=1, patch_size=1)
PIXART: dict[str, Any] = dict(
    sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
    cross_attention_dim=16, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=8,
    norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, use_additional_conditions=False,
    caption_channels=8,
)  # fmt: skip
SANA: dict[str, Any] = SPACE | dict(
    attention_head_dim=8, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
    caption_channels=8,
)  # fmt: skip
LUMINA: dict[str, Any] = dict(
    sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
    num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64), cap_feat_dim=32,
)  # fmt: skip
QWEN: dict[str, Any] = dict(
    patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
)  # fmt: skip
ZIMAGE: dict[str, Any] = dict(
    all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=16, n_layers=1, n_refiner_layers=1, n_heads=1, n_kv_heads=2,
    qk_norm=True, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[64, 32, 32],
)  # fmt: skip
WAN: dict[str, Any] = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=256,
    ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
)  # fmt: skip


def first(y: Any) -> Tensor:
    y = y.sample
    return torch.stack(y) if isinstance(y, list) else y


def batch(**inputs: Any) -> Callable[[], dict[str, Any]]:
    return lambda: inputs


FAMILIES = {
    "flux": Tiny(
        lambda: FluxTransformer2DModel(**FLUX, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8)),
        batch(hidden_states=drawn(2, 16, 4), encoder_hidden_states=drawn(2, 8, 32), pooled_projections=drawn(2, 32),
              img_ids=grid(16, 3), txt_ids=grid(8, 3), timestep=torch.tensor([0.3, 0.9])), first),
    "flux2": Tiny(
        lambda: Flux2Transformer2DModel(**FLUX, timestep_guidance_channels=256, axes_dims_rope=(4, 4, 4, 4)),
        batch(hidden_states=drawn(2, 16, 4), encoder_hidden_states=drawn(2, 8, 32), img_ids=grid(16, 4)[None].expand(2, -1, -1),
              txt_ids=grid(8, 4)[None].expand(2, -1, -1), timestep=torch.tensor([0.3, 0.9]), guidance=torch.ones(2)), first),
    "pixart": Tiny(
        lambda: PixArtTransformer2DModel(**PIXART),
        batch(hidden_states=drawn(2, 4, 8, 8), timestep=torch.tensor([5, 90]), encoder_hidden_states=drawn(2, 7, 8),
              added_cond_kwargs={"resolution": None, "aspect_ratio": None}), first),
    "sana": Tiny(
        lambda: SanaTransformer2DModel(**SANA),
        batch(hidden_states=drawn(2, 4, 8, 8), timestep=torch.tensor([5, 90]), encoder_hidden_states=drawn(2, 7, 8)), first),
    "lumina": Tiny(
        lambda: Lumina2Transformer2DModel(**LUMINA),
        batch(hidden_states=drawn(2, 4, 8, 8), timestep=torch.tensor([0.3, 0.9]), encoder_hidden_states=drawn(2, 6, 32),
              encoder_attention_mask=torch.ones(2, 6, dtype=torch.bool)), first),
    "qwen": Tiny(
        lambda: QwenImageTransformer2DModel(**QWEN),
        batch(hidden_states=drawn(2, 16, 16), encoder_hidden_states=drawn(2, 8, 16), timestep=torch.tensor([0.3, 0.9]),
              encoder_hidden_states_mask=torch.ones(2, 8, dtype=torch.long), img_shapes=[(1, 4, 4)] * 2), first),
    "zimage": Tiny(
        lambda: ZImageTransformer2DModel(**ZIMAGE),
        batch(x=[drawn(16, 1, 16, 16)] * 2, cap_feats=[drawn(16, 16)] * 2, t=torch.tensor([0.3, 0.9])), first),
    "wan": Tiny(
        lambda: WanTransformer3DModel(**WAN),
        batch(hidden_states=drawn(2, 4, 2, 8, 8), timestep=torch.tensor([5, 90]), encoder_hidden_states=drawn(2, 12, 16)), first),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "adaptformer", "bitfit"])
def test_methods(name: str, method: str):
    family = FAMILIES[name]
    roles = sorted(role for role in family.anatomy.roles() if not role.endswith("norm"))
    settings = {"lora": {"rank": 2, "targets": roles}, "adaptformer": {"bottleneck": 4, "dropout": 0.0}}.get(method, {})
    refusal = check(family, make_method(method, **settings))
    if (name, method) == ("sana", "adaptformer"):  # its feed-forward reads the picture with its channels first
        assert refusal is not None and "known by its layers alone" in refusal
    elif (name, method) == ("flux2", "bitfit"):  # it has no bias
        assert refusal is not None and "finds nothing to change" in refusal
    else:
        assert refusal is None


@pytest.mark.parametrize("name", FAMILIES)
def test_what_joins_attention_is_refused_and_a_side_network_where_no_stream_goes_all_through(name: str):
    with pytest.raises(PeftError, match="says of no attn where it can be joined|known by its layers alone"):
        adapt(FAMILIES[name].model(), "prefix")
    model = FAMILIES[name].model()
    if name in ("flux", "flux2", "lumina", "zimage"):
        with pytest.raises(PeftError, match="needs one stream all through"):
            adapt(model, "lst")
    else:
        FAMILIES[name](adapt(model, "lst", reduction=4))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_of_a_block_has_a_role(name: str):
    family = FAMILIES[name]
    inside = tuple(f"{path}." for path in family.anatomy.blocks[None])
    known = {place.module for place in family.anatomy.places}
    linears = {
        path
        for path, module in family.stock.named_modules()
        if path.startswith(inside) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    left = {path.rpartition("blocks.")[2] for path in linears - known}
    unread = (
        {"1.attn.add_q_proj", "1.attn.to_add_out", "1.txt_mlp.net.0.proj", "1.txt_mlp.net.2"}
        if name == "qwen"
        else set()
    )
    assert left == unread


def test_tokens_are_refused():
    with pytest.raises(PeftError, match="cannot take extra tokens"):
        adapt(FAMILIES["flux"].model(), "vpt")


def test_rows_of_flux_2s_fused_matrix():
    places = [p for p in FAMILIES["flux2"].anatomy.places if p.module.endswith("to_qkv_mlp_proj")]
    rows = [("single_in", None), ("q", (0, 32)), ("k", (32, 64)), ("v", (64, 96)), ("single_fc1", (96, 288))]
    assert [(p.role, p.rows) for p in places] == rows


ATTN = ["to_k", "to_q", "to_v", "to_out.0"]
JOINT = ["attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"] + [
    f"attn.{path}" for path in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
]
FEED = [f"{mlp}.net.{path}" for mlp in ("ff", "ff_context") for path in ("0.proj", "2")]
SCRIPTS = {
    "flux": ("lora_flux", JOINT + FEED), "sana": ("lora_sana", ATTN[:3]), "sd3": ("lora", JOINT),
    "flux2": ("lora_flux2", [*ATTN, "to_qkv_mlp_proj", "single_transformer_blocks.0.attn.to_out"]),
    "lumina": ("lora", ATTN), "qwen": ("lora", ATTN), "zimage": ("lora", ATTN),
}  # fmt: skip
"""A preset, and the `target_modules` of diffusers' train_dreambooth_lora_… (commit 58eb52c)."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_targets_of_diffusers_scripts(name: str):
    from peft import LoraConfig, inject_adapter_in_model

    preset, targets = SCRIPTS[name]
    model = MODELS["mmdit"].model() if name == "sd3" else FAMILIES[name].model()
    ours = adapt(copy.deepcopy(model), make_method(preset, rank=4))
    theirs = inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), model)
    sizes = {key.partition(".lora_")[0]: 0 for key, _ in theirs.named_parameters() if ".lora_" in key}
    for key, parameter in theirs.named_parameters():
        if ".lora_" in key:
            sizes[key.partition(".lora_")[0]] += parameter.numel()
    mine = {path for path, module in ours.named_modules() if hasattr(module, "peft")}
    # in SD3's last block nobody reads what the text asks
    unread = {"transformer_blocks.1.attn.add_q_proj"} if name == "sd3" else set()
    assert mine == sizes.keys() - unread
    assert count_parameters(ours).inserted == sum(sizes.values()) - sum(sizes[path] for path in unread)
