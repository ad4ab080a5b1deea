"""transformers' plain vision transformers: ViT, DeiT, MSN, I-JEPA, DINOv2, DINOv3, AIMv2, VideoMAE and the image towers of
CLIP and SigLIP, in the layout of transformers 5 (`q_proj`, `mlp.fc1`) and of 4 (`attention.query`, `intermediate.dense`).

A drop path or dropout that a layer calls for both of its steps stands behind what joins them, and drops that with them; no
released configuration has one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, has_weight, join, submodule

HOME = "transformers.models."
_LAYERS = {
    "ViTLayer", "DeiTLayer", "ViTMSNLayer", "IJepaLayer", "Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer",
    "Aimv2EncoderLayer", "VideoMAELayer", "CLIPEncoderLayer", "SiglipEncoderLayer", "Siglip2EncoderLayer",
}  # fmt: skip
"""Of two steps, x ← x + scale(attention(norm x)) and x ← x + scale(MLP(norm x))."""
_ATTENTION = {
    "q": ("q_proj", "attention.query"),
    "k": ("k_proj", "attention.key"),
    "v": ("v_proj", "attention.value"),
    "proj": ("o_proj", "out_proj", "output.dense"),
}
_MLP = {
    "fc1": ("mlp.fc1", "mlp.gate_proj", "mlp.up_proj", "mlp.weights_in", "ffn.gate_proj", "ffn.up_proj", "intermediate.dense"),
    "fc2": ("mlp.fc2", "mlp.down_proj", "mlp.weights_out", "ffn.down_proj", "output.dense"),
}  # fmt: skip
_NORMS = {
    "norm1": ("norm1", "layernorm_before", "layer_norm1", "rms_norm1"),
    "norm2": ("norm2", "layernorm_after", "layer_norm2", "rms_norm2"),
}
_PATCHES = ("patch_embeddings.projection", "patch_embeddings", "patch_embedding", "patch_embed")
_FIRST, _LAST = "pre_layrnorm", ("layernorm", "post_layernorm", "norm", "rms_norm")


def describe(model: Any) -> Anatomy | None:
    if not any(name.startswith(HOME) for name in class_names(model)) or hasattr(model, "text_model"):
        return None
    inside = next((path for path, module in model.named_modules() if _sees(module)), None)
    if inside is None:
        return None
    trunk: Any = submodule(model, inside) if inside else model
    anatomy = tower(trunk, "transformers ViT", ("q", "v"))
    if anatomy is None:
        return None
    anatomy.streams[None] = _stream(trunk)
    anatomy.places += [
        Place("patch_embed", f"embeddings.{path}") for path in _PATCHES if _matrix(trunk, f"embeddings.{path}")
    ][:1]
    anatomy.places += [Place("norm", norm) for norm in (_FIRST, *_LAST) if has_weight(trunk, norm)]
    anatomy.tail = tuple(name for name in (*_LAST, "pooler", "head") if submodule(trunk, name) is not None)
    anatomy = anatomy.under(inside)
    if has_weight(model, "fc_norm"):
        anatomy.places.append(Place("norm", "fc_norm"))
        anatomy.streams[None] = dataclasses.replace(anatomy.streams[None], pooled="fc_norm")
    anatomy.heads = [
        name for name in ("classifier", "cls_classifier", "distillation_classifier") if has_weight(model, name)
    ]
    return anatomy


def _sees(module: Any) -> bool:
    """Whether it is a model that embeds patches and runs layers over them."""
    embeddings = getattr(module, "embeddings", None)
    return embeddings is not None and any(submodule(embeddings, path) is not None for path in _PATCHES)


def _matrix(model: nn.Module, path: str) -> bool:
    return has_weight(model, path) and isinstance(submodule(model, path), nn.Linear | nn.Conv2d | nn.Conv3d)


def tower(model: nn.Module, family: str, targets: tuple[str, ...]) -> Anatomy | None:
    """Blocks, places and residual steps of the layers inside; None where there are none of a kind that is known."""
    lists = (path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module))
    at = next((path for path in lists if type(submodule(model, f"{path}.0")).__name__ in _LAYERS), None)
    if at is None:
        return None
    layers: Any = submodule(model, at)
    anatomy = Anatomy(family, targets, {None: [f"{at}.{index}" for index in range(len(layers))]})
    for index, layer in enumerate(layers):
        _layer(anatomy, layer, f"{at}.{index}", index)
    return anatomy


def _layer(anatomy: Anatomy, layer: nn.Module, here: str, index: int) -> None:
    attention = next(name for name in ("attention", "self_attn") if hasattr(layer, name))
    roles = {role: [f"{attention}.{path}" for path in paths] for role, paths in _ATTENTION.items()} | _MLP | _NORMS
    found = {role: [join(here, path) for path in paths if has_weight(layer, path)] for role, paths in roles.items()}
    # the output layer of transformers 4 adds the residual itself: what is joined stands at its linear
    body = next((name for name in ("mlp", "ffn") if hasattr(layer, name)), "intermediate")
    out = "output.dense" if body == "intermediate" else body
    anatomy.places += [Place(role, path, index) for role, paths in found.items() for path in paths]
    steps = (
        (1, "attn", attention, attention, found["q"] + found["k"] + found["v"]),
        (2, "mlp", body, out, found["fc1"]),
    )
    for number, kind, inside, last, readers in steps:
        scale = f"layer_scale{number}"
        gate = join(here, scale if hasattr(layer, scale) else last)
        (norm,) = found[f"norm{number}"]
        anatomy.sublayers.append(
            SubLayer(
                kind, index, norm, join(here, inside), tuple(readers), join(here, last), gate, attends=kind == "attn"
            )
        )


def _sides(config: Any, name: str) -> Sequence[int]:
    value: Any = getattr(config, name, None)  # not told where the pictures may have any size
    return value if isinstance(value, list | tuple) else (value, value)


def _stream(trunk: Any) -> Stream:
    embeddings, config = trunk.embeddings, trunk.config
    size, patch = _sides(config, "image_size"), _sides(config, "patch_size")
    tubes, masked = hasattr(config, "tubelet_size"), isinstance(submodule(embeddings, "patch_embedding"), nn.Linear)
    prefix = sum(hasattr(embeddings, name) for name in ("cls_token", "class_embedding", "distillation_token"))
    registers = getattr(embeddings, "register_tokens", None)
    return Stream(
        config.hidden_size, prefix + (0 if registers is None else registers.shape[1]),
        None if tubes or masked else (size[0] // patch[0], size[1] // patch[1]),
        "a mask of its patches fixes their number" if masked else None,
        patch=patch[0], rotary=hasattr(trunk, "rope_embeddings"),
        first_norm=_FIRST if has_weight(trunk, _FIRST) else None,
        last_norm=next((norm for norm in _LAST if has_weight(trunk, norm)), None),
    )  # fmt: skip
