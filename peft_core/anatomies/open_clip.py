"""open_clip: image tower, text tower, and both together (`CLIP`, `CustomTextCLIP`), with `nn.MultiheadAttention` (3.x)
or open_clip's own `Attention` (4.x): both hold q | k | v as rows of `in_proj_weight`."""

from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, SubLayer, TokenLayout, class_names, join
from peft_core.anatomies import describe as describe_any

_HERE = "open_clip.transformer."
_MODELS = {"open_clip.model.CLIP", "open_clip.model.CustomTextCLIP", "open_clip.coca_model.CoCa"}


def describe(model: nn.Module, at: str) -> Anatomy | None:
    names = class_names(model)
    if names & _MODELS:
        return _both_towers(model, at)
    if "open_clip.timm_model.TimmModel" in names:
        return describe_any(model.trunk, join(at, "trunk"))  # type: ignore[arg-type]
    if "open_clip.hf_model.HFTextEncoder" in names:
        return describe_any(model.transformer, join(at, "transformer"))  # type: ignore[arg-type]
    if _HERE + "VisionTransformer" in names:
        anatomy = _tower(model, at, norms=("ln_pre", "ln_post"))
        anatomy.places.append(Place("patch_embed", join(at, "conv1"), bias=None))
        if getattr(model.transformer, "batch_first", True):
            anatomy.tokens[None] = TokenLayout(1, model.conv1.weight[0].numel())  # type: ignore[union-attr,arg-type]
        return anatomy
    if _HERE + "TextTransformer" in names:
        return _tower(model, at, norms=("ln_final",))
    return None


def _both_towers(model: nn.Module, at: str) -> Anatomy | None:
    image = describe_any(model.visual, join(at, "visual"))  # type: ignore[arg-type]
    text = (
        describe_any(model.text, join(at, "text"))  # type: ignore[arg-type]
        if hasattr(model, "text")
        else _tower(model, at, norms=("ln_final",))
    )
    if image is None or text is None:
        return None
    anatomy = Anatomy("open_clip model", ("q", "v"))
    anatomy.include(image, "image")
    anatomy.include(text, "text")
    return anatomy


def _tower(model: nn.Module, at: str, norms: tuple[str, ...]) -> Anatomy:
    anatomy = Anatomy("open_clip tower", ("q", "v"))
    blocks: nn.ModuleList = model.transformer.resblocks  # type: ignore[union-attr,assignment]
    anatomy.blocks[None] = [join(at, f"transformer.resblocks.{i}") for i in range(len(blocks))]
    for index, block in enumerate(blocks):
        here = anatomy.blocks[None][index]
        width: int = block.ln_1.weight.shape[0]  # type: ignore[union-attr,assignment]
        # 4.x reads in_proj_weight in a forward of its own, which no dropout can enter
        called = isinstance(block.attn, nn.MultiheadAttention)
        in_proj: dict[str, Any] = dict(block=index, weight="in_proj_weight", bias="in_proj_bias", called=called)
        anatomy.places.append(Place("qkv", join(here, "attn"), **in_proj))
        for row, role in enumerate("qkv"):
            rows = (row * width, (row + 1) * width)
            anatomy.places.append(Place(role, join(here, "attn"), rows=rows, **in_proj))
        for role, path in (("proj", "attn.out_proj"), ("fc1", "mlp.c_fc"), ("fc2", "mlp.c_proj")):
            anatomy.places.append(Place(role, join(here, path), index))
        for number, kind in ((1, "attn"), (2, "mlp")):
            anatomy.places.append(Place(f"norm{number}", join(here, f"ln_{number}"), index))
            # mlp is a Sequential, to which nothing can be joined: its last layer stands for it
            steps = (f"ln_{number}", "attn" if kind == "attn" else "mlp.c_proj", f"ls_{number}")
            anatomy.sublayers.append(SubLayer(kind, index, *(join(here, step) for step in steps)))
    for norm in norms:
        if getattr(getattr(model, norm, None), "weight", None) is not None:
            anatomy.places.append(Place("norm", join(at, norm)))
    return anatomy
