"""The two losses of image–text models, of features of pictures and captions; what is alike is no negative."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["softmax", "sigmoid"]


def alike(pictures: Annotated[Tensor, "B"], captions: Annotated[Tensor, "B"]) -> Annotated[Tensor, "B B"]:
    """B B bool, caption j is true of picture i: it is its own, it is worded as its own, or it is of the same picture.

    Args:
        pictures, captions: int64 B, equal numbers for what is equal.
    """
    return (captions[:, None] == captions[None]) | (pictures[:, None] == pictures[None])


def softmax_loss(
    images: Annotated[Tensor, "B E"], texts: Annotated[Tensor, "B E"], truth: Annotated[Tensor, "B B"], scale: Tensor
) -> Tensor:
    """½ mean_i −1/|T_i| Σ_{j ∈ T_i} log softmax_j(s f̂_i·t̂_j), and as much over the pictures of each caption.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, where every picture
    has one true caption in the batch; several as in UniCL (Yang et al., CVPR 2022).

    Args:
        images, texts: features B E.
        truth: B B bool (`alike`).
        scale: s, exp of the logit scale.
    """
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    share = truth.to(logits.dtype)
    of_pictures = -(logits.log_softmax(1) * share).sum(1) / share.sum(1)
    of_captions = -(logits.log_softmax(0) * share).sum(0) / share.sum(0)
    return (of_pictures.mean() + of_captions.mean()) / 2


def sigmoid_loss(
    images: Annotated[Tensor, "B E"],
    texts: Annotated[Tensor, "B E"],
    truth: Annotated[Tensor, "B B"],
    scale: Tensor,
    bias: Tensor,
) -> Tensor:
    """−1/B Σ_ij log σ(y_ij (s f̂_i·t̂_j + b)), y_ij = 1 where caption j is true of picture i, else −1.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. Shapes as for `softmax_loss`; b is the logit bias.
    """
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T + bias
    return F.softplus(torch.where(truth, -logits, logits)).sum() / len(images)
