"""A backbone of timm or transformers at a size, giving feature maps for a head."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, describe
from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.hub.transformers_models import FromTransformers
from vision_peft.dense.of_transformers import TransformersMaps


class OnMaps(nn.Module):
    """A backbone's feature maps with a head.

    Args:
        image: a model of timm (or in its form) without head, whose `forward_intermediates` gives maps.
        head: reads them.
        indices: which of its maps.
    """

    def __init__(self, image: nn.Module, head: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.image, self.head, self.indices = image, head, list(indices)

    def peft_anatomy(self) -> Anatomy | None:
        """The image model's, with this head; features are read between its blocks, so it is not run from a block on."""
        inner = describe(self.image)
        if inner is None:
            return None
        return dataclasses.replace(inner.under("image"), heads=["head"], embed=None, finish=None)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps B C h w, finest first."""
        image: Any = self.image
        return image.forward_intermediates(x, indices=self.indices, intermediates_only=True, norm=self.plain)

    @property
    def plain(self) -> bool:
        """Whether all maps are of one size, as a ViT's: then the last norm is part of them."""
        return is_plain(self.image)


def is_plain(image: Any) -> bool:
    return len({each["reduction"] for each in image.feature_info}) == 1


def image_at(
    load: Callable[..., tuple[nn.Module, Backbone]], name: str, drop_path: float, size: int
) -> tuple[Any, Backbone]:
    """A backbone without head that takes pictures of this size (0: its own).

    Raises:
        PeftError: a backbone without feature maps, or one that cannot be brought to that size.
    """
    model: Any
    model, about = load(name, 0, drop_path)
    if isinstance(model, FromTransformers):
        return _of_transformers(model, about, name, size)
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise PeftError(
            f"{name} gives no feature maps: choose a ViT, Swin, ConvNeXt or CNN of timm (`list backbones`) or transformers (hf:)."
        )
    if size and (size, size) != about.input_size:
        about = dataclasses.replace(about, input_size=(size, size))
        try:
            if hasattr(model, "set_input_size"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # timm's, of how it resizes tables of positions
                    model.set_input_size(img_size=(size, size))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise _refused(name, size, error) from error
    return model, about


def _of_transformers(model: FromTransformers, about: Backbone, name: str, size: int) -> tuple[nn.Module, Backbone]:
    about = dataclasses.replace(about, input_size=(size, size)) if size else about
    try:
        return TransformersMaps(model.model, about.input_size, model.source), about
    except PeftError:
        raise
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _refused(name, about.input_size[0], error) from error


def _refused(name: str, size: int, error: Exception) -> PeftError:
    words = " ".join(str(error).split())[:160]
    return PeftError(f"{name} takes no pictures of {size} pixels ({words}): choose another --dense.size.")


def check_maps(model: Any, levels: Sequence[int], about: Backbone, name: str) -> None:
    """Raises PeftError: the model gives no maps at this size."""
    was = model.training
    try:
        with torch.no_grad():
            model.eval().forward_intermediates(
                torch.zeros(1, 3, *about.input_size), indices=list(levels), intermediates_only=True
            )
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _refused(name, about.input_size[0], error) from error
    finally:
        model.train(was)
