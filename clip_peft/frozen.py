"""The frozen CLIP model as methods see it: its towers, its texts, its scale."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft.projection import ImageProjection
from clip_peft.regions import regions
from clip_peft.text.prompts import Prompts, checked_tokenizer, make_prompts, text_ids
from clip_peft.text.run import TextPass
from clip_peft.text.templates import templates
from clip_peft.text.tower import TextTower
from peft_core.jobs.hub.backbone import Tokenizer


class Clip:
    """An open_clip model and its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, memory: float | None = None):
        self.model: Any = model
        self.tokenizer = checked_tokenizer(tokenizer)
        self.tower = TextTower(model)
        self.memory = memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "Clip":
        memo[id(self.tokenizer)] = self.tokenizer  # nobody changes it, and its tables are large
        memo[id(self)] = new = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    @property
    def scale(self) -> Tensor:
        """exp of the logit scale."""
        return self.model.logit_scale.exp()

    def compare(self, features: Tensor, texts: Tensor) -> Tensor:
        """s · f̂ tᵀ, … B C, of image features … B E and texts … C E (see cosine)."""
        return self.scale * cosine(features, texts)

    def prompts(self, names: Sequence[str], template: str = "{}.", context: int = 0, position: str = "end") -> Prompts:
        return make_prompts(self.tower, self.tokenizer, names, template, context, position)

    def text_pass(self, prompts: Prompts) -> TextPass:
        return TextPass(self.model, prompts, self.memory)

    def text_passes(self, names: Sequence[str], template: str | Sequence[str]) -> list[TextPass]:
        """One a template (see clip_peft.text.templates)."""
        return [self.text_pass(self.prompts(names, one)) for one in templates(template)]

    def image_features(self, images: Tensor, projected: bool = True, of_regions: bool = False) -> Tensor:
        """B E, as the image tower gives them (not normalised), or what its projection receives, or B R E of its places; without
        graph where nothing of the tower trains."""
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.visual.parameters())
        with torch.set_grad_enabled(trains):
            if of_regions:
                return regions(self.model.visual, images)
            return self.model.encode_image(images, normalize=False) if projected else self.projection.before(images)

    @property
    def picture_size(self) -> tuple[int, int]:
        """H W that the image tower was made for."""
        size = self.model.visual.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def projection(self) -> ImageProjection:
        """The linear map that ends the image tower."""
        return ImageProjection(self.model)

    def words(self, text: str) -> Tensor:
        """n D: the token embeddings of a text's own tokens, float32 copies."""
        ids = torch.tensor(text_ids(self.tokenizer, text), device=self.tower.device)
        return self.tower.embedding(ids).detach().float().clone()

    def random(self, *shape: int) -> Tensor:
        """float32 N(0, 0.02²) of (…, D)."""
        return torch.randn(*shape, self.tower.width, device=self.tower.device) * 0.02


def cosine(features: Tensor, texts: Tensor) -> Tensor:
    """f̂ tᵀ, … B C, of image features … B E, which are normalised here, and texts … C E of norm 1 (see product)."""
    return product(features, texts, normalise=True)


def product(rows: Tensor, others: Tensor, normalise: bool = False) -> Tensor:
    """x yᵀ, … B C, of x … B E and y … C E. In float32 under autocast too: bfloat16 would round logits of 30 to eighths."""
    kind = rows.device.type
    if autocasts(kind):
        with torch.autocast(kind, enabled=False):
            return product(rows.float(), others.float(), normalise)
    rows = F.normalize(rows, dim=-1) if normalise else rows
    return rows @ others.to(rows.dtype).transpose(-1, -2)


def autocasts(kind: str) -> bool:
    """Whether autocast is on for devices of a kind; it is never for shapes without values."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def mean_features(passes: Sequence[TextPass]) -> Tensor:
    """C E, of norm 1: the mean over templates of each text's normalised feature."""
    features = [F.normalize(text_pass(), dim=-1) for text_pass in passes]
    return F.normalize(torch.stack(features).mean(0), dim=-1) if len(features) > 1 else features[0]


def raw_features(passes: Sequence[TextPass]) -> Tensor:
    """C E: the mean over templates of each text's feature, as the tower gives it."""
    return torch.stack([text_pass() for text_pass in passes]).mean(0)
