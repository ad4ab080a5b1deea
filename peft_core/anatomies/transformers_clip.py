"""transformers `CLIPTextModel` and `CLIPTextModelWithProjection`, the text encoders of Stable Diffusion."""

from torch import nn

from peft_core.anatomies import Anatomy, Place, SubLayer, class_names, join

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


def describe(model: nn.Module, at: str) -> Anatomy | None:
    if not class_names(model) & {_HERE + "CLIPTextModel", _HERE + "CLIPTextModelWithProjection"}:
        return None
    inner = getattr(model, "text_model", None)  # gone from CLIPTextModel in transformers 5
    at, body = (at, model) if inner is None else (join(at, "text_model"), inner)
    layers: nn.ModuleList = body.encoder.layers  # type: ignore[union-attr,assignment]
    paths = [join(at, f"encoder.layers.{i}") for i in range(len(layers))]
    anatomy = Anatomy("transformers CLIP text model", ("q", "k", "v", "proj"), {None: paths})
    for index, here in enumerate(paths):
        anatomy.places += [Place(role, join(here, path), index) for role, path in _LINEARS.items()]
        for number, kind, body_path in ((1, "attn", "self_attn"), (2, "mlp", "mlp")):
            # no layer scale and no drop path: the body's own output is what is added to the stream
            steps = (join(here, f"layer_norm{number}"), join(here, body_path), join(here, body_path))
            anatomy.sublayers.append(SubLayer(kind, index, *steps))
    anatomy.places.append(Place("norm", join(at, "final_layer_norm")))
    anatomy.places.append(Place("token_embed", join(at, "embeddings.token_embedding")))
    return anatomy
