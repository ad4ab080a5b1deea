"""What a CLIP model's image tower says of each place of a picture, in the space of its texts."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.projection import put_at
from peft_core.errors import PeftError


def check_regions(visual: Any, who: str, side: int | None = None) -> None:
    """Raises PeftError unless `regions` knows the tower: open_clip's own ResNets, and ViTs for pictures of their own size."""
    if not _pools_by_attention(visual) and not _has_patches(visual):
        raise PeftError(
            f"{who} looks at the places of a picture, which the image tower {type(visual).__name__} does not give: choose a "
            "model of open_clip's own ResNets or ViTs (RN50, RN101, ViT-B-16 …)."
        )
    if side is not None and not _pools_by_attention(visual):
        raise PeftError(
            f"{who} takes pictures of another side than the tower's own with ResNets alone: leave side out."
        )


def regions(visual: Any, images: Tensor) -> Annotated[Tensor, "B R E"]:
    """B 1+HW E, not normalised: the mean of all places (of a ViT its class token), and each place.

    The tower's last attention mixes nothing: a place keeps its own value, through the value's and the output's projection. In a
    ResNet that is the attention pool, as in DualCoOp; in a ViT the last block's attention (what MaskCLIP, Zhou et al., ECCV 2022
    makes of both), whose residual and MLP stay. Pictures of another size than the tower's go through a ResNet, whose places'
    positions are interpolated. The tower stays as it is, so that threads may share it.
    """
    if _pools_by_attention(visual):
        return put_at(visual, "attnpool", _Places(visual.attnpool))(images)
    last = len(visual.transformer.resblocks) - 1
    twin: Any = put_at(visual, f"transformer.resblocks.{last}", _Alone(visual.transformer.resblocks[last]))
    twin = put_at(twin, "proj", None)
    twin.output_tokens = True
    whole, places = twin(images)
    places = twin.ln_post(places) if twin.final_ln_after_pool else places
    found = torch.cat((whole[:, None], places), dim=1)
    return found if visual.proj is None else found @ visual.proj


def _pools_by_attention(visual: Any) -> bool:
    pool = getattr(visual, "attnpool", None)
    return all(hasattr(pool, name) for name in ("v_proj", "c_proj", "positional_embedding"))


def _has_patches(visual: Any) -> bool:
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if not blocks or getattr(visual, "attn_pool", None) is not None or not hasattr(visual, "ln_post"):
        return False
    attention = getattr(blocks[-1], "attn", None)
    inside = attention is not None and getattr(attention, "in_proj_weight", None) is not None
    return inside and hasattr(attention, "out_proj") and getattr(visual, "pool_type", "") in ("tok", "avg")


class _Places(nn.Module):
    """B D H W → B 1+HW E: an attention pool in which no place looks at another."""

    def __init__(self, pool: Any):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pool, sides = self.pool, x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((x.mean(1, keepdim=True), x), dim=1)
        return pool.c_proj(pool.v_proj(x + _positions(pool.positional_embedding, *sides).to(x.dtype)))


def _positions(own: Annotated[Tensor, "1+SS D"], height: int, width: int) -> Annotated[Tensor, "1+HW D"]:
    if height * width + 1 == len(own):
        return own
    side = round((len(own) - 1) ** 0.5)
    grid = own[1:].t().reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic")
    return torch.cat((own[:1], grid.flatten(2)[0].t()))


class _Alone(nn.Module):
    """A ViT's block in which each token keeps its own value."""

    def __init__(self, block: Any):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        block = self.block
        attention, width = block.attn, x.shape[-1]
        bias = attention.in_proj_bias
        values = F.linear(
            block.ln_1(x), attention.in_proj_weight[2 * width :], None if bias is None else bias[2 * width :]
        )
        x = x + block.ls_1(attention.out_proj(values))
        return x + block.ls_2(block.mlp(block.ln_2(x)))
