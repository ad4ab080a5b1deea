"""What a model makes of pairs it was not trained on: retrieval both ways, the loss, and the accuracy of zero-shot sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from peft_data.augment import normalise
from torch import Tensor

from clip_peft.frozen import Clip, mean_features
from clip_peft.pairs.texts import Captions

AT_ONCE = 64
RANKS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Split:
    """Decoded pictures of a split, and which captions are theirs.

    Args:
        pictures: N decoded ones.
        captions: the different captions, M.
        own: N, the places in `captions` of each picture's.
    """

    pictures: Any
    captions: Captions
    own: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.own)


def split_of(clip: Clip, pictures: Any, captions: Sequence[tuple[str, ...]]) -> Split:
    """Decoded pictures with the captions of all that were listed: those that could not be read are gone from both."""
    kept = [captions[row] for row in pictures.labels.tolist()]
    places = {text: place for place, text in enumerate(dict.fromkeys(text for own in kept for text in own))}
    return Split(pictures, Captions(clip, list(places)), tuple(tuple(places[text] for text in own) for own in kept))


class Measure:
    """The model's two sides on decoded pictures and captions, in eval mode, float32."""

    def __init__(self, clip: Clip, mean: Sequence[float], std: Sequence[float]):
        self.clip, self.mean, self.std = clip, mean, std

    @property
    def device(self) -> torch.device:
        return self.clip.tower.device

    @torch.no_grad()
    def images(self, pictures: Any) -> Tensor:
        """N E of norm 1."""
        found = []
        for start in range(0, len(pictures), AT_ONCE):
            pixels = pictures.whole(range(start, min(start + AT_ONCE, len(pictures)))).to(self.device)
            found.append(F.normalize(self.clip.image_features(normalise(pixels, self.mean, self.std)).float(), dim=-1))
        return torch.cat(found)

    @torch.no_grad()
    def texts(self, captions: Captions) -> Tensor:
        """M E of norm 1."""
        rows = torch.arange(len(captions)).split(4 * AT_ONCE)
        return torch.cat([F.normalize(captions.features(part).float(), dim=-1) for part in rows])

    def features(self, split: Split) -> tuple[Tensor, Tensor]:
        """N E of a split's pictures, and M E of its different captions."""
        return self.images(split.pictures), self.texts(split.captions)

    @torch.no_grad()
    def zero_shot(self, pictures: Any, class_names: Sequence[str], template: str) -> float:
        """The accuracy of naming pictures by texts of their classes."""
        weights = mean_features(self.clip.text_passes(class_names, template)).float()
        predicted = (self.images(pictures) @ weights.T).argmax(-1).cpu()
        return (predicted == pictures.labels).float().mean().item()


def recall(
    images: Annotated[Tensor, "N E"], texts: Annotated[Tensor, "M E"], own: Sequence[Sequence[int]]
) -> dict[str, float]:
    """R@K both ways: the share of pictures that have one of their captions among the K nearest of all different captions
    (`image_to_text`), and of captions that have a picture of theirs among the K nearest pictures (`text_to_image`). What is as
    near as the right one counts as nearer.

    Args:
        images, texts: N E and M E of norm 1.
        own: N, the captions of each picture.
    """
    pairs = torch.tensor([(i, caption) for i, captions in enumerate(own) for caption in captions]).T
    found = {}
    for name, of, among, places in (
        ("image_to_text", images, texts, pairs),
        ("text_to_image", texts, images, pairs.flip(0)),
    ):
        ranks = _ranks(of, among, places[:, places[0].argsort(stable=True)].contiguous())
        found |= {f"{name}_r{k}": (ranks < k).float().mean().item() for k in RANKS}
    return found


def _ranks(of: Tensor, among: Tensor, places: Tensor, chunk: int = 256) -> Tensor:
    """How many wrong ones are as near as the nearest right one, or nearer; `places` are the right pairs, 2 P, by row."""
    ranks = []
    for start in range(0, len(of), chunk):
        near = (of[start : start + chunk] @ among.T).cpu()
        first, last = torch.searchsorted(places[0], torch.tensor([start, start + len(near)])).tolist()
        right = torch.zeros_like(near, dtype=torch.bool)
        right[places[0, first:last] - start, places[1, first:last]] = True
        best = near.masked_fill(~right, -2.0).amax(1, keepdim=True)
        ranks.append(((near >= best) & ~right).sum(1))
    return torch.cat(ranks)


def held_out_loss(
    images: Annotated[Tensor, "N E"], texts: Annotated[Tensor, "M E"], own: Sequence[Sequence[int]], size: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> float:  # fmt: skip
    """The mean loss of batches of `size` pictures, in order, each with its first caption; arguments as of `recall`."""
    first = torch.tensor([captions[0] for captions in own])
    batches = [part for part in torch.arange(len(own)).split(size) if len(part) > 1]
    each = [loss(images[part], texts[first[part]], first[part]).item() for part in batches]
    return sum(each) / max(1, len(each))
