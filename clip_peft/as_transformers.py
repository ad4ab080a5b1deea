"""An open_clip model as transformers' `CLIPModel`: its weights under those names, its config, its pictures and its words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from open_clip.transformer import QuickGELU
from safetensors.torch import save
from torch import Tensor, nn

from clip_peft.text.tower import TextTower
from peft_core.errors import PeftError

ATTENTION = {"attn.out_proj": "self_attn.out_proj"}
OF_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"} | ATTENTION
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def why_no_clip_model(model: Any) -> str | None:
    """What transformers' `CLIPModel` has not; None where the model is one."""
    visual, tower = model.visual, TextTower(model)
    if not all(hasattr(visual, name) for name in ("conv1", "class_embedding", "ln_pre", "ln_post", "transformer")):
        return f"its image tower {type(visual).__name__} is no ViT of open_clip's"
    if isinstance(visual.ln_pre, nn.Identity) or visual.proj is None:
        return "its image tower has no norm in front of its blocks, or no projection"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its image tower pools its tokens in another way than by the first"
    if because := tower.full_length_because():
        return because
    root = tower.root
    if getattr(root, "pool_type", getattr(root, "text_pool_type", "")) != "argmax" or root.text_projection is None:
        return "its text tower pools its tokens in another way than at the end of the text"
    if getattr(model, "logit_bias", None) is not None or getattr(root.text_projection, "bias", None) is not None:
        return "its logits or its text projection have a bias"
    for blocks in (visual.transformer.resblocks, root.transformer.resblocks):
        if len({_activation(block) for block in blocks} - {None}) != 1 or None in map(_activation, blocks):
            return f"its blocks {type(blocks[0]).__name__} do more than attention and an MLP of GELU"
    return None


def _activation(block: Any) -> str | None:
    """What transformers calls a stock block's activation; None for any other block."""
    attention, gelu = getattr(block, "attn", None), getattr(getattr(block, "mlp", None), "gelu", None)
    stock = getattr(attention, "in_proj_bias", None) is not None and hasattr(attention, "out_proj")
    plain = all(isinstance(getattr(block, name, None), nn.Identity) for name in ("ls_1", "ls_2"))
    if not stock or not plain:
        return None
    return "quick_gelu" if isinstance(gelu, QuickGELU) else "gelu" if isinstance(gelu, nn.GELU) else None


def clip_model_files(model: Any, tokenizer: Any, look: Mapping[str, Any]) -> dict[str, bytes]:
    """config.json, model.safetensors, preprocessor_config.json and, for open_clip's byte-pair tokenizer, that tokenizer's.

    Args:
        look: mean, std, size (H, W), resize and interpolation of pictures.

    Raises:
        PeftError: the model is none that `CLIPModel` can be.
    """
    if reason := why_no_clip_model(model):
        raise PeftError(f"transformers' CLIPModel cannot be this model, because {reason}: export the open_clip model.")
    root = TextTower(model).root
    visual, end = model.visual, getattr(tokenizer, "eot_token_id", 2)  # 2 is theirs for "where the greatest id stands"
    names = {"bos_token_id": getattr(tokenizer, "sot_token_id", 0), "eos_token_id": end, "pad_token_id": end}
    width = _matrix(root.text_projection).shape[1]
    text = _sizes(root.transformer.resblocks) | names | {
        "vocab_size": root.token_embedding.weight.shape[0], "max_position_embeddings": len(root.positional_embedding),
        "projection_dim": width, "layer_norm_eps": root.ln_final.eps,
    }  # fmt: skip
    vision = _sizes(visual.transformer.resblocks) | {
        "image_size": look["size"][0], "patch_size": visual.conv1.kernel_size[0], "projection_dim": width,
        "layer_norm_eps": visual.ln_post.eps,
    }  # fmt: skip
    config = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": width, "torch_dtype": "float32",
        "logit_scale_init_value": 2.6592, "text_config": text | {"model_type": "clip_text_model"},
        "vision_config": vision | {"model_type": "clip_vision_model"},
    }  # fmt: skip
    pictures = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_rescale": True,
        "do_normalize": True, "rescale_factor": 1 / 255, "image_mean": list(look["mean"]), "image_std": list(look["std"]),
        "resample": RESAMPLE[look["interpolation"]], **_frame(look["size"], look["resize"]),
    }  # fmt: skip
    files = {"config.json": config, "preprocessor_config.json": pictures} | _words(
        tokenizer, len(root.positional_embedding)
    )
    written = {name: value if isinstance(value, bytes) else _json(value) for name, value in files.items()}
    return written | {"model.safetensors": save(_state(model, root), {"format": "pt"})}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _frame(size: tuple[int, int], resize: str) -> dict[str, Any]:
    whole = {"height": size[0], "width": size[1]}
    if resize == "squash":
        return {"size": whole, "do_center_crop": False}
    return {"size": {"shortest_edge": min(size)}, "do_center_crop": True, "crop_size": whole}


def _sizes(blocks: Any) -> dict[str, Any]:
    first = blocks[0]
    return {
        "hidden_size": first.attn.embed_dim, "num_hidden_layers": len(blocks), "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.c_fc.out_features, "hidden_act": _activation(first),
    }  # fmt: skip


def _matrix(projection: Any) -> Tensor:
    """A projection as it stands on the right of features, D E."""
    return projection.weight.t() if isinstance(projection, nn.Linear) else projection


def _state(model: Any, root: Any) -> dict[str, Tensor]:
    visual = model.visual
    state = {
        "logit_scale": model.logit_scale,
        "visual_projection.weight": visual.proj.t(),
        "text_projection.weight": _matrix(root.text_projection).t(),
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": root.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": root.positional_embedding,
    }
    norms = (("vision_model.pre_layrnorm", visual.ln_pre), ("vision_model.post_layernorm", visual.ln_post),
             ("text_model.final_layer_norm", root.ln_final))  # fmt: skip
    state |= {f"{name}.{key}": value for name, norm in norms for key, value in norm.named_parameters()}
    for tower, blocks in (("vision_model", visual.transformer.resblocks), ("text_model", root.transformer.resblocks)):
        for i, block in enumerate(blocks):
            place = f"{tower}.encoder.layers.{i}"
            for name, value in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    state[f"{place}.self_attn.{letter}_proj.{name}"] = part
            for ours, theirs in OF_BLOCK.items():
                part = block.get_submodule(ours)
                state |= {f"{place}.{theirs}.{key}": value for key, value in part.named_parameters()}
    return {key: value.detach().cpu().float().clone().contiguous() for key, value in state.items()}


def _words(tokenizer: Any, length: int) -> dict[str, Any]:
    """Files of transformers' CLIPTokenizer; none for a tokenizer of another kind."""
    if not all(hasattr(tokenizer, name) for name in ("encoder", "bpe_ranks", "sot_token_id", "eot_token_id")):
        return {}
    marks = {tokenizer.sot_token_id: "<|startoftext|>", tokenizer.eot_token_id: "<|endoftext|>"}
    vocabulary = {marks.get(number, word): number for word, number in tokenizer.encoder.items()}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in tokenizer.bpe_ranks if len(pair) == 2), ""])
    about = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, "errors": "replace",
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip
    return {"vocab.json": vocabulary, "merges.txt": merges.encode(), "tokenizer_config.json": about}
