"""transformers' `Swin`, alone or under a classifier. Blocks are counted through all stages; each stage has a stream of its
own, B N D."""

from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, has_weight, join

_HERE = "transformers.models.swin.modeling_swin.Swin"
_ROLES = {
    "q": ("attention.q_proj", "attention.self.query"), "k": ("attention.k_proj", "attention.self.key"),
    "v": ("attention.v_proj", "attention.self.value"), "proj": ("attention.o_proj", "attention.output.dense"),
    "fc1": ("mlp.fc1", "intermediate.dense"), "fc2": ("mlp.fc2", "output.dense"),
    "norm1": ("layernorm_before",), "norm2": ("layernorm_after",),
}  # fmt: skip
"""Role -> where it stands in transformers 5, and in 4."""
_REFUSED = "its windows are cut from a grid, in which a further token has no place"


def describe(model: Any) -> Anatomy | None:
    if not class_names(model) & {f"{_HERE}Model", f"{_HERE}ForImageClassification"}:
        return None
    at, body = ("swin", model.swin) if hasattr(model, "swin") else ("", model)
    anatomy = Anatomy("transformers Swin", ("q", "v"), {None: []}, tail=("layernorm", "pooler"))
    for number, stage in enumerate(body.encoder.layers):
        name = f"stage{number + 1}"
        first = stage.blocks[0]
        anatomy.streams[name] = Stream(
            first.layernorm_before.normalized_shape[0], grid=tuple(first.input_resolution), tokens_refused=_REFUSED
        )
        if has_weight(stage, "downsample.reduction"):
            below = f"encoder.layers.{number}.downsample"
            anatomy.places += [Place("merge", join(below, "reduction")), Place("norm", join(below, "norm"))]
        for inner, block in enumerate(stage.blocks):
            _block(anatomy, block, f"encoder.layers.{number}.blocks.{inner}", name)
    outside = {"patch_embed": ("embeddings.patch_embeddings.projection",), "norm": ("embeddings.norm", "layernorm")}
    anatomy.places += [Place(role, path) for role, paths in outside.items() for path in paths if has_weight(body, path)]
    anatomy = anatomy.under(at)
    anatomy.heads = ["classifier"] if has_weight(model, "classifier") else []
    return anatomy


def _block(anatomy: Anatomy, block: nn.Module, here: str, stream: str) -> None:
    index = len(anatomy.blocks[None])
    anatomy.blocks[None].append(here)
    at = {role: next(path for path in paths if has_weight(block, path)) for role, paths in _ROLES.items()}
    anatomy.places += [Place(role, join(here, path), index) for role, path in at.items()]
    mlp, out = ("mlp", "mlp") if hasattr(block, "mlp") else ("intermediate", "output")
    # attention is called window by window: its result is whole again where drop path takes it
    steps = (
        ("attn", "layernorm_before", "attention", "attention", "drop_path", [at["q"], at["k"], at["v"]]),
        ("mlp", "layernorm_after", mlp, out, out, [at["fc1"]]),
    )
    for kind, norm, body, last, gate, into in steps:
        paths = (join(here, path) for path in (norm, body, last, gate))
        norm, body, last, gate = paths
        anatomy.sublayers.append(
            SubLayer(kind, index, norm, body, tuple(join(here, path) for path in into), last, gate, stream=stream,
                     windowed=kind == "attn")
        )  # fmt: skip
