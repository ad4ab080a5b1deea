"""The frozen image tower of picture prompts: an open_clip model by name."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.hub.open_clip_models import load_backbone, picture_fit


class Tower:
    """Features of one picture: the projected one D, or with `patches` all tokens before the last layer, N D.

    As in the authors' code, the features of no picture are zeros, with `patches` those of a picture of zeros.

    Args:
        spec: of `clip_peft.models.load_backbone`: `reference`, `ViT-H-14/laion2b_s32b_b79k`, ….
    """

    def __init__(self, spec: str, patches: bool, device: torch.device | str = "cpu") -> None:
        model, _, about = load_backbone(spec)
        self.fit, self.patches, self.device = picture_fit(model, about), patches, device
        visual: Any = model.visual
        self.visual = visual.to(device).eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (about.mean, about.std))
        self.zeros = torch.zeros(3, *about.input_size)
        self.width = int(self._features(self.zeros).shape[-1])

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(self.fit.picture(picture).copy()).float() / 255
        return self._features((pixels - self.mean) / self.std)

    def null(self) -> Tensor:
        out = self._features(self.zeros)
        return out if self.patches else torch.zeros_like(out)

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        x = pixels[None].to(self.device)
        if not self.patches:
            return self.visual(x)[0].float().cpu()
        kept: list[Any] = []
        block = self._blocks()[-2]
        handle = block.register_forward_hook(lambda module, args, out: kept.append(out))
        try:
            self.visual(x)
        finally:
            handle.remove()
        (tokens,) = kept
        tokens = tokens.transpose(0, 1) if tokens.shape[0] != 1 else tokens
        return tokens[0].float().cpu()

    def _blocks(self) -> nn.ModuleList:
        """Raises PeftError: a tower that is no transformer of two layers or more."""
        for path in ("transformer.resblocks", "trunk.blocks"):
            try:
                blocks = self.visual.get_submodule(path)
            except AttributeError:
                continue
            if len(blocks) > 1:
                return blocks
        raise PeftError(
            "this image tower has no patch tokens: choose a vision transformer with --control.image_encoder."
        )
