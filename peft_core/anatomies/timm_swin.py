"""timm `SwinTransformer` and `SwinTransformerV2`, whose norms stand behind attention and MLP. Blocks are
counted through all stages; each stage has a stream of its own, B H W D."""

from typing import Any

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, classifiers, fused, has_weight, join

_MODELS = {"timm.models.swin_transformer.SwinTransformer", "timm.models.swin_transformer_v2.SwinTransformerV2"}
_ROLES = {
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
}
_OUTSIDE = {"patch_embed": ("patch_embed.proj",), "norm": ("patch_embed.norm", "norm")}


def describe(model: Any) -> Anatomy | None:
    if not class_names(model) & _MODELS:
        return None
    anatomy = Anatomy("timm Swin", ("q", "v"), {None: []}, heads=classifiers(model), tail=("norm", "head"))
    for number, stage in enumerate(model.layers):
        name = f"stage{number + 1}"
        first = stage.blocks[0]
        anatomy.streams[name] = Stream(
            first.dim, grid=tuple(first.input_resolution),
            tokens_refused="its windows are cut from a grid, in which a further token has no place",
        )  # fmt: skip
        if has_weight(stage, "downsample.reduction"):
            below = f"layers.{number}.downsample"
            anatomy.places += [Place("merge", join(below, "reduction")), Place("norm", join(below, "norm"))]
        for inner, block in enumerate(stage.blocks):
            _block(anatomy, block, f"layers.{number}.blocks.{inner}", name)
    for role, paths in _OUTSIDE.items():
        anatomy.places += [Place(role, path) for path in paths if has_weight(model, path)]
    return anatomy


def _block(anatomy: Anatomy, block: Any, here: str, stream: str) -> None:
    index = len(anatomy.blocks[None])
    anatomy.blocks[None].append(here)
    width = block.attn.qkv.out_features // 3
    post = type(block).__name__ == "SwinTransformerV2Block"
    # the second version adds q and v biases of its own and reads qkv.weight without calling the module
    called = getattr(block.attn, "q_bias", None) is None
    whole, *thirds = fused(join(here, "attn.qkv"), index, width, bias="bias" if called else None, called=called)
    anatomy.places += [whole, *(Place(role, join(here, path), index) for role, path in _ROLES.items()), *thirds]
    # attention is called window by window: its result is whole again where drop path takes it
    for number, (kind, reader) in enumerate((("attn", "attn.qkv"), ("mlp", "mlp.fc1")), start=1):
        norm, body, into, gate = (join(here, path) for path in (f"norm{number}", kind, reader, f"drop_path{number}"))
        attention = kind == "attn"
        anatomy.sublayers.append(
            SubLayer(
                kind, index, norm, body, (into,) if called or not attention else (), gate=gate, stream=stream, post=post,
                enters=here if post and attention else "", windowed=attention, attends=attention and not post,
            )
        )  # fmt: skip
