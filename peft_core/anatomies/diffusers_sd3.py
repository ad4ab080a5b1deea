"""diffusers `SD3Transformer2DModel` (Stable Diffusion 3, 3.5): MMDiT blocks, in which picture and text attend together.

The roles q … fc2 are the picture's, `context_q` … `context_fc2` the text's. The sum behind attention happens between two
modules, so no branch joins there; the sum behind the feed-forward is the block's own output.
"""

from typing import Any

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, has_weight, join

_PICTURE = {
    "q": "attn.to_q", "k": "attn.to_k", "v": "attn.to_v", "proj": "attn.to_out.0", "fc1": "ff.net.0.proj", "fc2": "ff.net.2",
    "q_norm": "attn.norm_q", "k_norm": "attn.norm_k", "modulation": "norm1.linear",
}  # fmt: skip
_TEXT = {
    "context_q": "attn.add_q_proj", "context_k": "attn.add_k_proj", "context_v": "attn.add_v_proj",
    "context_proj": "attn.to_add_out", "context_fc1": "ff_context.net.0.proj", "context_fc2": "ff_context.net.2",
    "context_modulation": "norm1_context.linear",
}  # fmt: skip
_OUTSIDE = {"patch_embed": "pos_embed.proj", "context_embed": "context_embedder", "proj_io": "proj_out"}


def describe(model: Any) -> Anatomy | None:
    if "diffusers.models.transformers.transformer_sd3.SD3Transformer2DModel" not in class_names(model):
        return None
    paths = [f"transformer_blocks.{i}" for i in range(len(model.transformer_blocks))]
    targets = ("q", "k", "v", "proj", "context_q", "context_k", "context_v", "context_proj")
    anatomy = Anatomy("diffusers MMDiT", targets, {None: paths})
    width, side = model.inner_dim, model.config.sample_size // model.config.patch_size
    anatomy.streams[None] = Stream(width, grid=(side, side), arg="hidden_states", output=1)
    anatomy.streams["context"] = Stream(
        width, arg="encoder_hidden_states", tokens_refused="its words have an order of their own"
    )
    for index, block in enumerate(model.transformer_blocks):
        here = paths[index]
        for role, path in (_PICTURE | _TEXT).items():
            # what the text asks in the last block is answered, but nobody reads the answer
            if has_weight(block, path) and not (role == "context_q" and block.context_pre_only):
                anatomy.places.append(Place(role, join(here, path), index))
        readers = tuple(join(here, path) for role, path in _PICTURE.items() if role in ("q", "k", "v"))
        steps = [
            SubLayer("attn", index, join(here, "norm1"), join(here, "attn"), readers, gate=None, attends=True),
            SubLayer("mlp", index, join(here, "norm2"), join(here, "ff"), (join(here, _PICTURE["fc1"]),), gate=here, output=1),
        ]  # fmt: skip
        if not block.context_pre_only:
            norm, body, into = (join(here, path) for path in ("norm2_context", "ff_context", _TEXT["context_fc1"]))
            steps.append(SubLayer("context_mlp", index, norm, body, (into,), gate=here, stream="context"))
        anatomy.sublayers += steps
    anatomy.places += [Place(role, path) for role, path in _OUTSIDE.items()]
    return anatomy
