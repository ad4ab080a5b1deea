"""Image features that are computed once: views of pictures through a frozen image tower, kept on disk and mapped.

A file is one view of one set of pictures, float32 N E. Its name is a hash of all that it depends on: the image tower's
weights and settings, mean and std, the pictures' bytes at the model's size, and the view's augmentation and seed. It is
written beside its place and moved there when it is whole; processes that want the same view wait for one another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from peft_data.augment import normalise
from peft_data.cache import decoded
from torch import Tensor, nn

from clip_peft.learner import Learner, grafted
from clip_peft.open_vocabulary import OpenVocabulary
from peft_core.errors import PeftError
from peft_core.files import cache_root
from peft_core.saved.configuration import settings_of

VERSION = 2
CHUNK = 64
"""Pictures that are augmented and encoded at once."""


def frozen_image_tower(whole: OpenVocabulary) -> bool:
    """Whether image features are the stock model's whatever is learnt."""
    if any(method.tower != "text" for method in grafted(whole.method)):
        return False
    return type(whole.learner).encode is Learner.encode


class Encoder:
    """The image side of a model: pictures as bytes → features, with the model's own normalisation, in float32.

    Args:
        whole: the model.
        mean, std: of the channels, which go from 0 to 1.
        folder: where views of pictures are kept; None keeps nothing.
    """

    def __init__(self, whole: OpenVocabulary, mean: Sequence[float], std: Sequence[float], folder: Path | None = None):
        self.whole, self.mean, self.std, self.folder = whole, mean, std, folder
        self.frozen = frozen_image_tower(whole)

    @property
    def device(self) -> torch.device:
        return self.whole.learner.clip.tower.device

    def images(self, images: Tensor) -> Tensor:
        """Pictures as the model takes them, from uint8 … 3 H W."""
        flat = normalise(images.flatten(0, -4).to(self.device), self.mean, self.std)
        return flat.view(*images.shape[:-3], *flat.shape[1:])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features … E (or … R E), float32, of uint8 … 3 H W through the stock image tower."""
        with torch.autocast(self.device.type, enabled=False):
            learner = self.whole.learner
            flat = learner.clip.image_features(
                self.images(images.flatten(0, -4)), learner.projected, learner.of_regions
            )
        return flat.float().view(*images.shape[:-3], *flat.shape[1:])

    def stock_features(self, pictures: Any) -> Iterator[Tensor]:
        """Features B E of pictures as they are, through the stock image tower; kept ones where it is frozen."""
        learner = self.whole.learner
        project = (lambda x: x) if learner.projected else learner.clip.projection
        if learner.of_regions:
            for rows in chunks(len(pictures)):
                images = at_size(learner.clip.picture_size, self.images(pictures.whole(rows)))
                yield learner.clip.image_features(images).float()
            return
        if self.frozen:
            (features,) = self.views(pictures, [None])
            yield from (project(few.to(self.device)) for few in features.split(CHUNK))
            return
        for rows in chunks(len(pictures)):
            yield project(self.encode(pictures.whole(rows)))

    def views(self, pictures: Any, which: Sequence[int | None], augment: str = "none", seed: int = 0) -> list[Tensor]:
        """N E for each view of pictures (uint8 N 3 H W, decoded ones, or in their own frames): None is the picture as it is
        tested, v its v-th augmentation."""
        pictures = decoded(pictures) if isinstance(pictures, Tensor) else pictures

        def made(view: int | None, rows: range) -> Tensor:
            return pictures.whole(rows) if view is None else pictures.augmented(rows, augment, seed, view)

        def named(view: int | None) -> str:
            return "as it is" if view is None or augment == "none" else f"{augment} {view} {seed}"

        return self._all(pictures, [(named(view), partial(made, view)) for view in which])

    def generated(self, pictures: Any, variations: Callable[[Tensor, int], Tensor], count: int) -> list[Tensor]:
        """N E for each of `count` variations of pictures; what makes them says in its `repr` what they depend on."""
        pictures = decoded(pictures) if isinstance(pictures, Tensor) else pictures

        def made(number: int, rows: range) -> Tensor:
            return variations(pictures.whole(rows), number)

        return self._all(pictures, [(f"{variations!r} {number}", partial(made, number)) for number in range(count)])

    def _all(self, pictures: Any, which: Sequence[tuple[str, Callable[[range], Tensor]]]) -> list[Tensor]:
        """N E for each name of a view and what gives the images of some rows."""
        was_training = self.whole.model.training
        self.whole.model.eval()
        try:
            digest = pictures.digest() if self.folder else ""
            digest = digest and f"{self.tower()} {digest}"
            return [self._view(pictures, what, made, digest) for what, made in which]
        finally:
            self.whole.model.train(was_training)

    def _view(self, pictures: Any, what: str, made: Callable[[range], Tensor], digest: str) -> Tensor:
        def pieces() -> list[Tensor]:
            return [self.encode(made(rows)).cpu() for rows in chunks(len(pictures))]

        if self.folder is None or not digest:
            return torch.cat(pieces())
        learner = self.whole.learner
        what += "" if learner.projected else " before the projection"
        what += " of places" if learner.of_regions else ""
        key = f"{VERSION} {self.mean} {self.std} {digest} {what}"
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.f32"
        with _locked(path):
            if not path.is_file() or path.stat().st_size % (4 * len(pictures)):
                part = path.with_suffix(".part")
                try:
                    with open(part, "wb") as file:
                        for piece in pieces():
                            file.write(piece.contiguous().numpy().data)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(part, path)
                except OSError as error:
                    raise PeftError(_unwritable(self.folder, error)) from error
                finally:
                    part.unlink(missing_ok=True)
        size = path.stat().st_size // 4
        found = torch.from_file(str(path), shared=False, size=size, dtype=torch.float32).view(len(pictures), -1)
        return found.unflatten(1, (-1, learner.clip.tower.features)) if learner.of_regions else found

    def tower(self) -> str:
        """A hash of the image tower: of its weights, and of its settings (activation, heads, pooling)."""
        visual: Any = self.whole.model.visual
        return f"{_of_weights(visual)} {hashlib.sha256(settings_of(visual).encode()).hexdigest()}"


def chunks(count: int) -> list[range]:
    """The rows of so many pictures, as many as are encoded at once."""
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def at_size(size: tuple[int, int], images: Tensor) -> Tensor:
    """Images H W large."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


class Views:
    """Cached features of N training pictures in K views."""

    def __init__(self, views: list[Tensor]):
        self.views = views

    def pick(self, rows: Tensor, chance: torch.Generator) -> Tensor:
        """B E: a view of each row, drawn by `chance`."""
        views = torch.randint(len(self.views), (len(rows),), generator=chance).tolist()
        return torch.stack([self.views[view][row] for view, row in zip(views, rows.tolist(), strict=True)])


def default_cache() -> Path:
    """Where features are kept, beside decoded pictures."""
    return cache_root() / "features"


def _of_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextlib.contextmanager
def _locked(path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise PeftError(_unwritable(path.parent, error)) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"image features cannot be kept in {folder} ({error.strerror or error}): make room there, name another folder with "
        "--data.cache_dir, or turn the cache off with --cache_views 0."
    )
