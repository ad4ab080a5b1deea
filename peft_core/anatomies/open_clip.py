"""open_clip: image tower, text tower, and both together (`CLIP`, `CustomTextCLIP`), with `nn.MultiheadAttention` (3.x)
or open_clip's own `Attention` (4.x): both hold q | k | v as rows of `in_proj_weight`."""

from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, fused, has_weight, join
from peft_core.anatomies import describe as describe_any

_HERE = "open_clip.transformer."
_MODELS = {"open_clip.model.CLIP", "open_clip.model.CustomTextCLIP", "open_clip.coca_model.CoCa"}
_TEXT = ("transformer", "token_embedding", "positional_embedding", "cls_emb", "ln_final", "text_projection")
"""What `CLIP` keeps of its text tower at its own root, where `CustomTextCLIP` has a module `text`."""
_INTO = {"attn": "attn", "mlp": "mlp.c_fc"}


def describe(model: Any) -> Anatomy | None:
    names = class_names(model)
    if names & _MODELS:
        return _both_towers(model)
    if "open_clip.timm_model.TimmModel" in names:
        trunk = describe_any(model.trunk)
        return None if trunk is None else trunk.under("trunk")
    if "open_clip.hf_model.HFTextEncoder" in names:
        inner = describe_any(model.transformer)
        return None if inner is None else inner.under("transformer")
    if _HERE + "VisionTransformer" in names:
        anatomy = _tower(model, norms=("ln_pre", "ln_post"))
        anatomy.places.append(Place("patch_embed", "conv1", bias=None))
        refused = (
            None if getattr(model.transformer, "batch_first", True) else "its tokens stand before the pictures (N B D)"
        )
        anatomy.streams[None] = Stream(
            model.conv1.out_channels, 1, tuple(model.grid_size), refused, patch=model.conv1.kernel_size[0],
            first_norm="ln_pre" if has_weight(model, "ln_pre") else None, last_norm="ln_post",
        )  # fmt: skip
        return anatomy
    if _HERE + "TextTransformer" in names:
        return _text(model)
    return None


def _text(model: Any) -> Anatomy:
    anatomy = _tower(model, norms=("ln_final",))
    anatomy.streams[None] = Stream(
        model.ln_final.weight.shape[0], causal=model.attn_mask is not None,
        tokens_refused="its mask and its positions fix the length of a text", last_norm="ln_final",
    )  # fmt: skip
    return anatomy


def _both_towers(model: Any) -> Anatomy | None:
    anatomy = Anatomy("open_clip model", ("q", "v"))
    text = "text" if hasattr(model, "text") else ""
    towers = {
        "image": (model.visual, describe_any(model.visual), "visual", ("visual",)),
        "text": (model, describe_any(model.text) if text else _text(model), text, (text,) if text else _TEXT),
    }
    for tower, (module, part, at, members) in towers.items():
        if part is None:
            owner = module.text if tower == "text" else module
            anatomy.unknown[tower] = f"{type(owner).__module__}.{type(owner).__name__}"
        else:
            anatomy.include(part, tower, at, members)
    return anatomy if anatomy.blocks else None


def _tower(model: Any, norms: tuple[str, ...]) -> Anatomy:
    anatomy = Anatomy("open_clip tower", ("q", "v"))
    blocks: nn.ModuleList = model.transformer.resblocks
    anatomy.blocks[None] = [f"transformer.resblocks.{i}" for i in range(len(blocks))]
    for index, block in enumerate(blocks):
        here = anatomy.blocks[None][index]
        width: int = block.ln_1.weight.shape[0]  # type: ignore[union-attr,assignment]
        # 4.x reads in_proj_weight in a forward of its own, which no dropout can enter
        called = isinstance(block.attn, nn.MultiheadAttention)
        in_proj: dict[str, Any] = dict(weight="in_proj_weight", bias="in_proj_bias", called=called)
        anatomy.places += fused(join(here, "attn"), index, width, **in_proj)
        for role, path in (("proj", "attn.out_proj"), ("fc1", "mlp.c_fc"), ("fc2", "mlp.c_proj")):
            anatomy.places.append(Place(role, join(here, path), index))
        for number, kind in ((1, "attn"), (2, "mlp")):
            anatomy.places.append(Place(f"norm{number}", join(here, f"ln_{number}"), index))
            # mlp is a Sequential, to which nothing can be joined: its last layer gives its result
            steps = (f"ln_{number}", kind, "attn" if kind == "attn" else "mlp.c_proj", f"ls_{number}", _INTO[kind])
            norm, body, out, gate, into = (join(here, step) for step in steps)
            anatomy.sublayers.append(SubLayer(kind, index, norm, body, (into,), out, gate, attends=kind == "attn"))
    anatomy.places += [Place("norm", norm) for norm in norms if has_weight(model, norm)]
    return anatomy
