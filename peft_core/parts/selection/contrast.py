"""A loss that says which weights hold classes apart, without a head."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_contrastive(
    features: Annotated[Tensor, "B V D"], labels: Annotated[Tensor, "B"], temperature: float = 0.07
) -> Tensor:
    """Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020: for each view of each picture the mean of −log p over the
    other views of its class, with p the softmax over all other views of the cosines divided by the temperature."""
    count = features.shape[1]
    views = F.normalize(features, dim=-1).transpose(0, 1).flatten(0, 1)
    others = ~torch.eye(len(views), dtype=torch.bool, device=views.device)
    same = (labels[:, None] == labels).repeat(count, count) & others
    logits = (views @ views.t() / temperature).masked_fill(~others, -torch.inf)
    log_p = logits.log_softmax(-1).masked_fill(~same, 0.0)
    return -(log_p.sum(1) / same.sum(1).clamp(min=1)).mean()
