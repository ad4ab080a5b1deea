"""Vision transformers whose attention sees all frames of a clip: tubelet embedding, VideoMAE's layout."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer, register_model
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, timm_vit
from peft_core.errors import PeftError
from vision_peft.video.views import over_views


class TubeletEmbed(nn.Module):
    """Clips B T 3 H W to tokens B N D, one for every tubelet of t frames and p × p pixels: N = T/t · H/p · W/p, the
    tokens of a time after another, by a convolution with kernel and stride (t, p, p)."""

    def __init__(self, img_size: Any = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768,
                 frames: int = 16, tubelet: int = 2, bias: bool = True, dynamic_img_pad: bool = False,
                 device: Any = None, dtype: Any = None) -> None:  # fmt: skip
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.img_size, self.patch_size = size, (patch_size, patch_size)
        self.grid_size = (size[0] // patch_size, size[1] // patch_size)
        kernel = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel, bias=bias, device=device, dtype=dtype)
        self.frames, self.tubelet = frames, tubelet

    @property
    def num_patches(self) -> int:
        return self.frames // self.tubelet * self.grid_size[0] * self.grid_size[1]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != self.frames or tuple(x.shape[-2:]) != self.img_size:
            height, width = self.img_size
            raise PeftError(f"this model takes clips B {self.frames} 3 {height} {width}, not {tuple(x.shape)}.")
        return self.proj(x.transpose(1, 2)).flatten(2).transpose(1, 2)


class JointViT(VisionTransformer):
    """timm's ViT on tubelets: clips B T 3 H W → logits B C; views B V T 3 H W as `over_views` says."""

    fixed_positions = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return over_views(self, x) if x.ndim == 6 else super().forward(x, *args, **kwargs)

    def set_frames(self, frames: int) -> None:
        """Make it a model for clips of T frames; a fixed position embedding follows, a learnt one cannot.

        Raises:
            PeftError: the tubelet does not divide T, or the positions of other frames are not known.
        """
        embed: Any = self.patch_embed
        check_tubelet(frames, embed.tubelet)
        if frames == embed.frames:
            return
        if not self.fixed_positions:
            raise PeftError(f"this model's positions are of {embed.frames} frames: give --data.frames {embed.frames}.")
        embed.frames = frames
        self.pos_embed = nn.Parameter(sinusoid(embed.num_patches, self.embed_dim).to(self.pos_embed)[None])  # type: ignore[arg-type]

    def peft_anatomy(self) -> Anatomy | None:
        """A timm ViT's; a new last norm trains and is saved with the head."""
        anatomy = timm_vit.describe(self)
        if anatomy is not None and getattr(self, "norm_is_new", False):
            anatomy.heads = [*anatomy.heads, "fc_norm"]
        return anatomy

    def renew_norm(self) -> None:
        """The norm behind the mean starts at 1 and 0 where the file's stood before it, or where there is none."""
        if getattr(self, "norm_is_elsewhere", False):
            self.fc_norm.reset_parameters()  # type: ignore[operator]
            self.norm_is_new = True

    def map_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A VideoMAE checkpoint's tensors under this model's keys (`vision_peft.video.videomae.map_keys`)."""
        from vision_peft.video.videomae import map_keys

        self.norm_is_elsewhere = not any(key.endswith("fc_norm.weight") for key in state)
        own = {"pos_embed": self.pos_embed.detach()} if getattr(self, "fixed_positions", False) else {}  # type: ignore[union-attr]
        return own | map_keys(state)


def check_tubelet(frames: int, tubelet: int) -> None:
    if tubelet < 1 or frames % tubelet:
        raise PeftError(
            f"a tubelet of {tubelet} frames does not divide clips of {frames}: choose another --data.frames."
        )


def sinusoid(positions: int, dim: int) -> Tensor:
    """Row n: sin and cos of n / 10000^(2⌊d/2⌋/D) for even and odd d; positions D."""
    place = torch.arange(positions, dtype=torch.float64)[:, None]
    angle = place / 10000 ** (2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos()).float()


def make_joint(model: nn.Module, frames: int, size: tuple[int, int], tubelet: int) -> JointViT:
    """An image ViT of timm, in place, as a `JointViT`: the patch embedding's kernel stands t times, each divided by t, and
    the position embedding once a time with a fixed sinusoid of the time, as large in the mean as the positions, added.

    Raises:
        PeftError: another kind of model, or a tubelet that does not divide the frames.
    """
    check_tubelet(frames, tubelet)
    if type(model) is not VisionTransformer or model.pos_embed is None or model.dynamic_img_size:
        raise PeftError(
            f"{type(model).__name__} cannot attend to all frames at once: choose a timm ViT with fixed positions, or "
            "--video.attention frames."
        )
    old: Any = model.patch_embed
    conv, (patch, _) = old.proj, old.patch_size
    embed = TubeletEmbed(size, patch, conv.in_channels, conv.out_channels, frames, tubelet, conv.bias is not None)
    positions = model.pos_embed.detach()
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    first, spatial = positions[:, :prefix], positions[:, prefix:]
    time = sinusoid(frames // tubelet, positions.shape[-1]).to(positions)
    time = time * (spatial.square().mean() / time.square().mean()).sqrt()
    whole = (spatial + time[:, None]).flatten(0, 1)[None]
    with torch.no_grad():
        embed.proj.weight.copy_(conv.weight[:, :, None].expand(-1, -1, tubelet, -1, -1) / tubelet)
        if conv.bias is not None:
            embed.proj.bias.copy_(conv.bias)  # type: ignore
    model.patch_embed = embed.to(positions.device)
    model.pos_embed = nn.Parameter(torch.cat((first, whole), 1))
    model.__class__ = JointViT
    return model  # type: ignore[return-value]


def _videomae(size: str, patch: int, dim: int, depth: int, heads: int, **options: Any) -> JointViT:
    frames, tubelet = options.pop("frames", 16), options.pop("tubelet", 2)
    for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    settings: dict[str, Any] = dict(
        patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, class_token=False, global_pool="avg",
        norm_layer=partial(nn.LayerNorm, eps=1e-6), embed_layer=partial(TubeletEmbed, frames=frames, tubelet=tubelet),
    )  # fmt: skip
    model = JointViT(**(settings | options))
    model.fixed_positions = True
    with torch.no_grad():
        model.pos_embed.copy_(sinusoid(model.patch_embed.num_patches, dim)[None])  # type: ignore[union-attr]
    cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "architecture": f"videomae_{size}_patch{patch}_224",
           "input_size": (3, 224, 224), "crop_pct": 1.0, "classifier": "head"}  # fmt: skip
    vars(model).update(pretrained_cfg=cfg, default_cfg=cfg)
    return model


@register_model
def videomae_small_patch16_224(**options: Any) -> JointViT:
    """VideoMAE's ViT-S: tubelets of 2 × 16 × 16, fixed positions, mean of the tokens."""
    return _videomae("small", 16, 384, 12, 6, **options)


@register_model
def videomae_base_patch16_224(**options: Any) -> JointViT:
    """VideoMAE's ViT-B."""
    return _videomae("base", 16, 768, 12, 12, **options)


@register_model
def videomae_large_patch16_224(**options: Any) -> JointViT:
    """VideoMAE's ViT-L."""
    return _videomae("large", 16, 1024, 24, 16, **options)
