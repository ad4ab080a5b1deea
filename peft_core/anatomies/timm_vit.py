"""timm `VisionTransformer` (ViT, DeiT, DINOv2, SigLIP towers …) and `Eva` models."""

from typing import Any

from torch import Tensor, nn

from peft_core.anatomies import Anatomy, Place, SubLayer, TokenLayout, class_names, join, submodule

_VIT = "timm.models.vision_transformer.VisionTransformer"
_EVA = "timm.models.eva.Eva"
_LINEARS = {
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
_NORMS = {"norm1": "norm1", "norm2": "norm2", "q_norm": "attn.q_norm", "k_norm": "attn.k_norm"}


def describe(model: nn.Module, at: str) -> Anatomy | None:
    names = class_names(model)
    if not names & {_VIT, _EVA}:
        return None
    blocks: nn.ModuleList = model.blocks  # type: ignore[assignment]
    if not all(hasattr(block, name) for block in blocks for name in ("norm1", "attn", "norm2", "mlp", "drop_path2")):
        return None  # parallel and post-norm blocks have another residual structure
    anatomy = Anatomy("timm ViT", ("q", "v"), {None: [join(at, f"blocks.{i}") for i in range(len(blocks))]})
    anatomy.places.append(Place("patch_embed", join(at, "patch_embed.proj")))
    for index, block in enumerate(blocks):
        here = join(at, f"blocks.{index}")
        _attention(anatomy, block.attn, join(here, "attn"), index)  # type: ignore[arg-type]
        for role, paths in (_LINEARS | {norm: (path,) for norm, path in _NORMS.items()}).items():
            for path in paths:
                if getattr(submodule(block, path), "weight", None) is not None:
                    anatomy.places.append(Place(role, join(here, path), index))
        for kind, number in (("attn", 1), ("mlp", 2)):
            steps = (f"norm{number}", kind, f"drop_path{number}")
            anatomy.sublayers.append(SubLayer(kind, index, *(join(here, step) for step in steps)))
    for norm in ("norm_pre", "norm", "fc_norm"):
        if getattr(submodule(model, norm), "weight", None) is not None:
            anatomy.places.append(Place("norm", join(at, norm)))
    anatomy.heads = [join(at, name) for name in ("head", "head_dist") if isinstance(submodule(model, name), nn.Linear)]
    if getattr(model, "rope", None) is None:
        fan_in = model.patch_embed.proj.weight[0].numel()  # type: ignore[union-attr]
        averaged = getattr(model, "global_pool", "") == "avg"
        anatomy.tokens[None] = TokenLayout(model.num_prefix_tokens, fan_in, averaged)  # type: ignore[arg-type]
    anatomy.embed, anatomy.finish = (_embed, _finish) if _VIT in names else (None, None)
    return anatomy


def _embed(model: Any, pictures: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pictures))))


def _finish(model: Any, tokens: Tensor) -> Tensor:
    return model.forward_head(model.norm(tokens))


def _attention(anatomy: Anatomy, attention: nn.Module, here: str, index: int) -> None:
    fused = getattr(attention, "qkv", None)
    if fused is None:
        anatomy.places += [Place(role, join(here, f"{role}_proj"), index) for role in "qkv"]
        return
    path, width = join(here, "qkv"), fused.out_features // 3
    # EVA adds q and v biases of its own and reads qkv.weight without calling the module.
    called = getattr(attention, "q_bias", None) is None
    bias = "bias" if called else None
    anatomy.places.append(Place("qkv", path, index, bias=bias, called=called))
    for row, role in enumerate("qkv"):
        anatomy.places.append(Place(role, path, index, bias=bias, called=called, rows=(row * width, (row + 1) * width)))
