"""transformers `CLIPTextModel` and `CLIPTextModelWithProjection`, the text encoders of Stable Diffusion."""

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, join

_HERE = "transformers.models.clip.modeling_clip."
_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "proj": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}


def describe(model: nn.Module) -> Anatomy | None:
    if not class_names(model) & {_HERE + "CLIPTextModel", _HERE + "CLIPTextModelWithProjection"}:
        return None
    inner = getattr(model, "text_model", None)  # gone from CLIPTextModel in transformers 5
    at, body = ("", model) if inner is None else ("text_model", inner)
    layers: nn.ModuleList = body.encoder.layers  # type: ignore[union-attr,assignment]
    paths = [join(at, f"encoder.layers.{i}") for i in range(len(layers))]
    anatomy = Anatomy("transformers CLIP text model", ("q", "k", "v", "proj"), {None: paths})
    anatomy.streams[None] = Stream(
        body.config.hidden_size, causal=True, tokens_refused="its causal mask and its positions fix the length of a text",  # type: ignore
        last_norm=join(at, "final_layer_norm"),
    )  # fmt: skip
    for index, here in enumerate(paths):
        anatomy.places += [Place(role, join(here, path), index) for role, path in _LINEARS.items()]
        # no layer scale and no drop path: the body's own output is what is added to the stream
        for number, kind, inside, readers in ((1, "attn", "self_attn", ("q", "k", "v")), (2, "mlp", "mlp", ("fc1",))):
            into = tuple(join(here, _LINEARS[role]) for role in readers)
            anatomy.sublayers.append(SubLayer(kind, index, join(here, f"layer_norm{number}"), join(here, inside), into))
    anatomy.places.append(Place("norm", join(at, "final_layer_norm")))
    anatomy.places.append(Place("token_embed", join(at, "embeddings.token_embedding")))
    return anatomy
