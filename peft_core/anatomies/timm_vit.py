"""timm `VisionTransformer` (ViT, DeiT, DINOv2, SigLIP towers …), `Eva`, `Beit`, `VisionTransformerRelPos` and `NaFlexVit`, with
norms before the body or behind it."""

from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, classifiers, fused, has_weight, join

_VIT = "timm.models.vision_transformer.VisionTransformer"
_MODELS = {
    _VIT, "timm.models.eva.Eva", "timm.models.beit.Beit", "timm.models.naflexvit.NaFlexVit",
    "timm.models.vision_transformer_relpos.VisionTransformerRelPos",
}  # fmt: skip
_LINEARS = {
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
_NORMS = {"norm1": "norm1", "norm2": "norm2", "q_norm": "attn.q_norm", "k_norm": "attn.k_norm"}
_BEHIND = {"ResPostBlock", "EvaBlockPostNorm", "ResPostRelPosBlock"}
"""Blocks whose norms stand behind attention and MLP."""
_PARTS = ("norm1", "attn", "norm2", "mlp", "drop_path2")
_ATTEND = {"Attention", "AttentionRope", "EvaAttention", "RelPosAttention"}
_READERS = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.gate", *_LINEARS["fc1"])


def describe(model: nn.Module) -> Anatomy | None:
    names = class_names(model)
    blocks: Any = model.blocks if names & _MODELS else ()
    if not all(hasattr(block, name) for block in blocks or (model,) for name in _PARTS):
        return None  # those of parallel branches are known by their leaves
    anatomy = Anatomy("timm ViT", ("q", "v"), {None: [f"blocks.{i}" for i in range(len(blocks))]})
    anatomy.streams[None] = _stream(model)
    anatomy.places += [
        Place("patch_embed", path) for path in ("patch_embed.proj", "embeds.proj") if has_weight(model, path)
    ]
    for index, block in enumerate(blocks):
        here = f"blocks.{index}"
        _attention(anatomy, block.attn, join(here, "attn"), index)  # type: ignore[arg-type]
        for role, paths in (_LINEARS | {norm: (path,) for norm, path in _NORMS.items()}).items():
            anatomy.places += [Place(role, join(here, path), index) for path in paths if has_weight(block, path)]
        for kind, number in (("attn", 1), ("mlp", 2)):
            readers = [path for path in _READERS if path.startswith(kind) and has_weight(block, path)]
            read_uncalled = kind == "attn" and getattr(block.attn, "q_bias", None) is not None
            into = () if read_uncalled else tuple(join(here, path) for path in readers)
            norm, body, gate = (join(here, step) for step in (f"norm{number}", kind, f"drop_path{number}"))
            post = type(block).__name__ in _BEHIND
            attends = kind == "attn" and type(block.attn).__name__ in _ATTEND
            cut = _cut(getattr(block, kind), kind)
            step = SubLayer(kind, index, norm, body, into, gate=gate, post=post, attends=attends, cut=cut)
            anatomy.sublayers.append(step)
    anatomy.places += [Place("norm", norm) for norm in ("norm_pre", "norm", "fc_norm") if has_weight(model, norm)]
    anatomy.heads = classifiers(model)
    anatomy.tail = ("norm", "fc_norm", "head_drop")
    anatomy.embed, anatomy.finish = (_embed, _finish) if _VIT in names else (None, None)
    return anatomy


def _cut(body: Any, kind: str) -> tuple[str, ...] | None:
    """Where nothing but an activation that keeps zeros stands between what gives heads or channels and what takes them."""
    if not isinstance(body.norm if hasattr(body, "norm") else None, nn.Identity):
        return None
    if kind == "attn":
        plain = type(body).__name__ == "Attention" and hasattr(body, "attn_dim") and body.gate is None
        return ("num_heads", "attn_dim") if plain else None
    plain = type(body).__name__ == "Mlp" and isinstance(body.fc1, nn.Linear)
    keeps_zeros = not list(body.act.parameters()) and body.act(torch.zeros(1, device="cpu")).item() == 0
    return () if plain and keeps_zeros else None


def _stream(model: Any) -> Stream:
    norms = [n for n in ("norm_pre", "norm") if has_weight(model, n)]
    embed: Any = getattr(model, "patch_embed", None) or model.embeds
    grid = getattr(embed, "grid_size", None)
    size = getattr(embed, "img_size", None)
    patch = size[0] // grid[0] if grid and size else embed.patch_size[0]
    return Stream(
        model.embed_dim, model.num_prefix_tokens, tuple(grid) if grid else None, _refusal(model), patch=patch,
        rotary=getattr(model, "rope", None) is not None, pooled="fc_norm" if model.global_pool == "avg" else None,
        first_norm="norm_pre" if "norm_pre" in norms else None, last_norm="norm" if "norm" in norms else None,
    )  # fmt: skip


def _refusal(model: Any) -> str | None:
    if hasattr(model, "embeds"):
        return "a mask of its patches fixes their number"
    parts = [getattr(model, name, None) for name in ("rel_pos_bias", "shared_rel_pos")]
    parts += [getattr(model.blocks[0].attn, name, None) for name in ("relative_position_bias_table", "rel_pos")]
    return None if all(part is None for part in parts) else "its biases of relative positions fix the number of tokens"


def _embed(model: Any, pictures: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pictures))))


def _finish(model: Any, tokens: Tensor) -> Tensor:
    return model.forward_head(model.norm(tokens))


def _attention(anatomy: Anatomy, attention: nn.Module, here: str, index: int) -> None:
    qkv = getattr(attention, "qkv", None)
    if qkv is None:
        anatomy.places += [Place(role, join(here, f"{role}_proj"), index) for role in "qkv"]
        return
    path, width = join(here, "qkv"), qkv.out_features // 3
    # EVA adds q and v biases of its own and reads qkv.weight without calling the module.
    called = getattr(attention, "q_bias", None) is None
    anatomy.places += fused(path, index, width, bias="bias" if called else None, called=called)
