"""timm `Hiera`. Each stage has a stream of its own, B N D in the order of its mask units; a block that opens a stage makes the
new stream itself, so that its attention is no residual step."""

from typing import Any

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, classifiers, fused, has_weight, join

_ROLES = {
    "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2",
    "merge": "proj",
}  # fmt: skip
_REFUSED = "its tokens are pooled by units of the picture, in which a further token has no place"


def describe(model: Any) -> Anatomy | None:
    if "timm.models.hiera.Hiera" not in class_names(model):
        return None
    paths = [f"blocks.{index}" for index in range(len(model.blocks))]
    anatomy = Anatomy("timm Hiera", ("q", "v"), {None: paths}, heads=classifiers(model), tail=("norm", "head"))
    for index, (here, block) in enumerate(zip(paths, model.blocks, strict=True)):
        name = f"width{block.dim_out}"
        anatomy.streams[name] = Stream(block.dim_out, tokens_refused=_REFUSED)
        anatomy.places += [
            Place(role, join(here, path), index) for role, path in _ROLES.items() if has_weight(block, path)
        ]
        anatomy.places += fused(join(here, "attn.qkv"), index, block.dim_out)
        for number, kind, reader in ((1, "attn", "attn.qkv"), (2, "mlp", "mlp.fc1")):
            if kind == "mlp" or not block.do_expand:
                norm, body, into, gate = (
                    join(here, path) for path in (f"norm{number}", kind, reader, f"drop_path{number}")
                )
                anatomy.sublayers.append(SubLayer(kind, index, norm, body, (into,), gate=gate, stream=name))
    anatomy.places += [Place("patch_embed", "patch_embed.proj")] if has_weight(model, "patch_embed.proj") else []
    anatomy.places += [Place("norm", norm) for norm in ("norm", "head.norm") if has_weight(model, norm)]
    return anatomy
