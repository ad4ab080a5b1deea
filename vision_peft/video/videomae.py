"""VideoMAE checkpoints under timm's key names: the authors' layout and Hugging Face's."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_HUGGING_FACE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "attention.output.dense": "attn.proj",
    "attention.attention": "attn",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "classifier": "head",
}


def map_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VideoMAE state dict (pretrained or fine-tuned; the authors' or Hugging Face's) as a `JointViT` takes it.

    Queries and values have a bias of their own and keys have none: qkv.bias = [q_bias, 0, v_bias]. Hugging Face's separate
    query, key and value become rows of `qkv`. The encoder's last norm stands before the mean over tokens in pretrained
    files and behind it in the classifier: it becomes `fc_norm`. Decoder and mask token are left out.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _name(key)
        if name is None:
            continue
        block, attention, rest = name.partition(".attn.")
        word = re.fullmatch(r"(q|k|v|query|key|value)[._](weight|bias)", rest) if attention else None
        if word:
            parts.setdefault(block, {})[f"{word[1][0]}.{word[2]}"] = value
        else:
            out[name] = value
    for block, part in parts.items():
        if "q.weight" in part:
            out[f"{block}.attn.qkv.weight"] = torch.cat([part[f"{role}.weight"] for role in "qkv"])
        if "q.bias" in part:
            none = torch.zeros_like(part["q.bias"])
            out[f"{block}.attn.qkv.bias"] = torch.cat((part["q.bias"], part.get("k.bias", none), part["v.bias"]))
    return out


def _name(key: str) -> str | None:
    """The key without the wrappers around the encoder, in timm's words; None for what classification does not use."""
    key = re.sub(r"^(module|model)\.", "", key)
    if key.startswith(("decoder.", "encoder_to_decoder.", "mask_token")) or key == "pos_embed":
        return None
    key = re.sub(r"^(videomae|encoder)\.", "", key)
    key = re.sub(r"^encoder\.", "", key)
    key = re.sub(r"^layer\.", "blocks.", key)
    for theirs, ours in _HUGGING_FACE.items():
        if key.startswith(theirs + ".") or f".{theirs}." in key:
            key = key.replace(theirs, ours, 1)
            break
    key = re.sub(r"^(norm|layernorm)\.", "fc_norm.", key)
    return key
