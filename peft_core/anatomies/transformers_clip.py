"""transformers' CLIP and SigLIP: the text models (those of Stable Diffusion among them), and both towers together."""

from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, class_names, join
from peft_core.anatomies import describe as describe_any
from peft_core.anatomies.transformers_vit import HOME, tower

_TEXT = {
    f"{HOME}{place}TextModel"
    for place in ("clip.modeling_clip.CLIP", "siglip.modeling_siglip.Siglip", "siglip2.modeling_siglip2.Siglip2")
}
_TEXT |= {f"{HOME}clip.modeling_clip.CLIPTextModelWithProjection"}
_BOTH = {
    f"{HOME}{place}Model"
    for place in ("clip.modeling_clip.CLIP", "siglip.modeling_siglip.Siglip", "siglip2.modeling_siglip2.Siglip2")
}
_REFUSED = "its causal mask and its positions fix the length of a text"


def describe(model: Any) -> Anatomy | None:
    names = class_names(model)
    if names & _TEXT:
        return _text(model)
    if not names & _BOTH:
        return None
    anatomy = Anatomy("transformers CLIP", ("q", "v"))
    members = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
    for name, owned in members.items():
        part = describe_any(model.get_submodule(owned[0]))
        if part is not None:
            anatomy.include(part, name, owned[0], owned)
    return anatomy


def _text(model: Any) -> Anatomy | None:
    # transformers 4 has a text transformer within the model
    at = "text_model" if hasattr(model, "text_model") else ""
    body: nn.Module = model.text_model if at else model
    anatomy = tower(body, "transformers CLIP text model", ("q", "k", "v", "proj"))
    if anatomy is None:
        return None
    config, causal = body.config, "clip" == type(model).__module__.split(".")[2]  # type: ignore
    anatomy.streams[None] = Stream(
        config.hidden_size, causal=causal, tokens_refused=_REFUSED if causal else "its positions fix the length of a text",  # type: ignore
        last_norm="final_layer_norm",
    )  # fmt: skip
    anatomy.places.append(Place("norm", "final_layer_norm"))
    anatomy.places.append(Place("token_embed", join("embeddings", "token_embedding")))
    return anatomy.under(at)
