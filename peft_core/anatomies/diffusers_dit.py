"""diffusers' diffusion transformers: Flux, Flux.2, Qwen-Image, Z-Image, Lumina 2, PixArt, Sana, Wan. (SD3 has a file of its own.)

The roles q … fc2 are the picture's, `context_q` … the text's where it has a stream of its own, `cross_q` … those of cross
attention. Flux's single blocks make attention and MLP's result by one matrix, `single_proj`; what goes into their MLP is
`single_fc1`, and Flux.2's one matrix for that, q, k and v is `single_in`. Gates stand between modules: a branch joins the MLP's
step at the block's own output, and none joins attention's.
"""

from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, has_weight, join

_HOME = "diffusers.models.transformers."
_MODELS = {
    "transformer_flux.Flux", "transformer_flux2.Flux2", "transformer_qwenimage.QwenImage", "transformer_z_image.ZImage",
    "transformer_lumina2.Lumina2", "pixart_transformer_2d.PixArt", "sana_transformer.Sana",
}  # fmt: skip
_CLASSES = {f"{_HOME}{name}Transformer2DModel" for name in _MODELS} | {f"{_HOME}transformer_wan.WanTransformer3DModel"}
_LISTS = ("noise_refiner", "context_refiner", "transformer_blocks", "single_transformer_blocks", "layers", "blocks")
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k"}
_CONTEXT = {"q": "attn.add_q_proj", "k": "attn.add_k_proj", "v": "attn.add_v_proj", "proj": "attn.to_add_out"}
_IN = ("net.0.proj", "linear_in", "linear_1", "linear_3", "w1", "w3", "conv_inverted")
_OUT = ("net.2", "linear_out", "linear_2", "w2", "conv_point")
_OTHERS = {
    "modulation": ("norm1.linear", "norm.linear", "img_mod.1", "adaLN_modulation.0"),
    "context_modulation": ("norm1_context.linear", "txt_mod.1"), "single_proj": ("proj_out", "attn.to_out"),
    "conv": ("ff.conv_depth",), "single_fc1": ("proj_mlp",), "single_in": ("attn.to_qkv_mlp_proj",),
}  # fmt: skip
_OUTSIDE = {
    "patch_embed": ("x_embedder", "img_in", "pos_embed.proj", "patch_embed.proj", "patch_embedding"),
    "context_embed": ("context_embedder", "txt_in", "cap_embedder.1"), "proj_io": ("proj_out",),
}  # fmt: skip
_BEFORE_MLP = ("ffn_norm1", "norm3", "img_norm2", "norm2")
_UNREAD = {"context_q", "context_proj", "context_fc1", "context_fc2"}
"""What makes the text's stream, which nobody reads behind the last of two-stream blocks."""


def describe(model: Any) -> Anatomy | None:
    if not class_names(model) & _CLASSES:
        return None
    paths = [f"{name}.{i}" for name in _LISTS for i in range(len(getattr(model, name, ())))]
    anatomy = Anatomy("diffusers DiT", ("q", "k", "v", "proj"), {None: paths})
    # where blocks are of several kinds, the text has blocks of its own or joins the picture: no stream goes all through
    kinds = {path.partition(".")[0] for path in paths}
    for kind in kinds:
        two = has_weight(model.get_submodule(f"{kind}.0"), "attn.add_q_proj")
        anatomy.streams[None if len(kinds) == 1 else kind] = Stream(
            _width(model, f"{kind}.0"), tokens_refused="its tokens' places are given from outside",
            arg="hidden_states" if two else 0, output=int(two),
        )  # fmt: skip
    for index, here in enumerate(paths):
        _block(anatomy, model.get_submodule(here), here, index, last=here == paths[-1])
    anatomy.places += [
        Place(role, path) for role, tried in _OUTSIDE.items() for path in tried if has_weight(model, path)
    ]
    return anatomy


def _width(model: Any, path: str) -> int:
    block = model.get_submodule(path)
    attention = next(getattr(block, name) for name in ("attn", "attn1", "attention") if hasattr(block, name))
    return (attention.to_q if hasattr(attention, "to_q") else attention.to_qkv_mlp_proj).in_features


def _block(anatomy: Anatomy, block: Any, here: str, index: int, last: bool) -> None:
    found: dict[str, list[str]] = {}
    for attention, prefix in (("attn", ""), ("attn1", ""), ("attention", ""), ("attn2", "cross_")):
        for role, path in _ATTENTION.items():
            found.setdefault(prefix + role, []).append(f"{attention}.{path}")
    for role, path in _CONTEXT.items():
        found[f"context_{role}"] = [path]
    bodies = [
        name for name in ("ff", "img_mlp", "ffn", "feed_forward") if isinstance(getattr(block, name, None), nn.Module)
    ]
    for prefix, mlps in (("", bodies), ("context_", ("ff_context", "txt_mlp"))):
        for role, paths in (("fc1", _IN), ("fc2", _OUT)):
            found[prefix + role] = [f"{mlp}.{path}" for mlp in mlps for path in paths]
    for role, paths in _OTHERS.items():
        found.setdefault(role, []).extend(paths)
    two = has_weight(block, "attn.add_q_proj")
    for role, paths in found.items():
        known = [path for path in paths if has_weight(block, path)]
        if not (two and last and role in _UNREAD):
            anatomy.places += [Place(role, join(here, path), index) for path in known]
    if has_weight(block, "attn.to_qkv_mlp_proj"):
        at, start = join(here, "attn.to_qkv_mlp_proj"), 0
        for role in "qkv":
            anatomy.places.append(Place(role, at, index, rows=(start, start + block.attn.inner_dim)))
            start += block.attn.inner_dim
        anatomy.places.append(Place("single_fc1", at, index, rows=(start, block.attn.to_qkv_mlp_proj.out_features)))
    norm = next((name for name in _BEFORE_MLP if getattr(block, name, None) is not None), None)
    convolves = has_weight(block, "ff.conv_inverted")  # reads the picture with its channels first
    if bodies and norm is not None and not convolves and not here.startswith("context_refiner"):
        body = join(here, bodies[0])
        readers = tuple(
            join(here, path) for path in found["fc1"] if path.startswith(bodies[0]) and has_weight(block, path)
        )
        stream = None if None in anatomy.streams else here.partition(".")[0]
        anatomy.sublayers.append(
            SubLayer("mlp", index, join(here, norm), body, readers, gate=here, output=int(two), stream=stream)
        )
