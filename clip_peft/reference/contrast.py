"""What the reference CLIP is trained with: the start of its towers, its batches, and a contrastive loss that knows which
captions are true of which pictures."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from open_clip import CLIP, SimpleTokenizer
from peft_data.world.captions_pool import captions
from peft_data.world.draw import Draw
from peft_data.world.phrases import true_of
from torch import Tensor
from torch.nn import functional as F

SHIFT = 3
"""Pictures of a batch are moved by up to so many pixels."""


def start_from_vit(visual: torch.nn.Module, vit: torch.nn.Module) -> None:
    """The image tower takes over a timm ViT of its width and depth; open_clip's patch embedding has no bias, so that of
    timm's goes into the positions."""
    state = vit.state_dict()
    bias = state["patch_embed.proj.bias"]
    positions = state["pos_embed"][0].clone()
    positions[1:] += bias
    new = {
        "conv1.weight": state["patch_embed.proj.weight"],
        "class_embedding": state["cls_token"][0, 0],
        "positional_embedding": positions,
        "ln_post.weight": state["norm.weight"],
        "ln_post.bias": state["norm.bias"],
        "proj": visual.state_dict()["proj"],
    }
    names = {
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj.": "attn.out_proj.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
    }
    for name, value in state.items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            old = next(old for old in names if rest.startswith(old))
            new[f"transformer.resblocks.{block}.{names[old]}{rest.removeprefix(old)}"] = value
    visual.load_state_dict(new)


def normalised(pictures: Tensor) -> Tensor:
    """uint8 N 3 S S to the model's input."""
    return pictures.float() / 127.5 - 1


def text_features(model: CLIP, ids: Annotated[Tensor, "C L"]) -> Annotated[Tensor, "C E"]:
    """Features C E of token ids C L without padding to 77: the tower is causal, so nothing changes."""
    tower: Any = model
    length = ids.shape[1]
    x = tower.token_embedding(ids) + tower.positional_embedding[:length]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    return x[torch.arange(len(ids)), ids.argmax(1)] @ tower.text_projection


def batch(
    data: dict[str, Tensor], tokenizer: SimpleTokenizer, step: int, size: int, texts: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of a step: pictures B 3 S S, moved and mirrored at random, token ids C L of captions of the first C, and
    which caption is true of which picture, B C bool."""
    count = len(data["pictures"])
    epoch, start = divmod(step * size, count // size * size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))[start : start + size]
    draw = Draw("pretrain", "batch", seed, step)
    images, known = normalised(data["pictures"][order]), data["attributes"][order]
    side = images.shape[-1]
    down, right = draw.ints(2, high=2 * SHIFT + 1).tolist()
    images = F.pad(images, [SHIFT] * 4, mode="reflect")[..., down : down + side, right : right + side]
    images = torch.where(draw.chance(size, 1, 1, 1, p=0.5), images.flip(3), images)
    sentences, said = captions(draw, known[:texts])
    ids = tokenizer(sentences)
    return images, ids[:, : int((ids > 0).sum(1).max())], true_of(known[:texts], said, known)


def contrast(
    images: Annotated[Tensor, "B E"], texts: Annotated[Tensor, "C E"], truth: Annotated[Tensor, "B C"], scale: Tensor
) -> Tensor:
    """Cross entropy in both directions between the softmax of s · cos and a uniform choice of all that is true:

        ½ mean_i −1/|T_i| Σ_{c ∈ T_i} log softmax_c(s f_i·t) + ½ mean_c −1/|P_c| Σ_{i ∈ P_c} log softmax_i(s f·t_c)

    With one true caption a picture this is CLIP's loss (Radford et al., 2021); several as in UniCL (Yang et al., 2022).

    Args:
        images, texts: features B E and C E.
        truth: B C bool; a picture without any true caption counts only as a wrong choice.
        scale: s.
    """
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    share = truth.float()
    row, column = share.sum(1), share.sum(0)
    of_pictures = -(logits.log_softmax(1) * share).sum(1)[row > 0] / row[row > 0]
    of_texts = -(logits.log_softmax(0) * share).sum(0) / column
    return (of_pictures.mean() + of_texts.mean()) / 2
