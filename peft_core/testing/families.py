"""Tiny models for the contract, what a method lacks on one, and how it is moved and judged."""

from __future__ import annotations

import copy
import copyreg
import functools
import io
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import Anatomy, anatomy_of
from peft_core.method import Method


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, a batch for it, and how to make one tensor of its output.

    Args:
        build: makes the model with random weights; called once.
        batch: keyword arguments of a forward.
        out: the output as one tensor.
        prepare: called with the model before each forward.
        exact: its stock classes compute as the adapted ones do, to the last bit (`nn.MultiheadAttention` does not).
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    out: Callable[[Any], Tensor] = lambda y: y
    prepare: Callable[[Any], object] = lambda model: None
    exact: bool = True

    @functools.cached_property
    def stock(self) -> nn.Module:
        """The model, built once: not to be changed."""
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():  # vectors start at 0 or 1, where much has no effect
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    @functools.cached_property
    def _written(self) -> Written:
        return Written(self.stock)

    @functools.cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.stock)

    @functools.cached_property
    def unused(self) -> set[str]:
        """Parameters that no output depends on."""
        model = self.model().train()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        loss(self(model)).backward()
        return {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}

    @functools.cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Of the stock model in `eval` mode, in train mode with `still` statistics of its norms, and wholly in `train` mode."""
        model = self.model()
        found = {"eval": self(model.eval()).detach()}
        for module in model.train().modules():
            if getattr(module, "running_mean", None) is not None:
                module.eval()
        found["still"] = self(model).detach()
        return found | {"train": self(model.train()).detach()}

    @functools.cached_property
    def headed(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Stock models in eval mode with another head, and what they give, by that head."""
        return {}

    def model(self) -> nn.Module:
        """A model of its own, always of the same weights."""
        model = self._written.read()
        seed(1)
        return model

    def __call__(self, model: nn.Module, draw: int = 0) -> Tensor:
        self.prepare(model)
        seed(7 + draw)
        return self.out(model(**self.batch()))


class Written:
    """A model as pickled bytes beside its tensors: read again in a fifth of the time that `copy.deepcopy` takes."""

    def __init__(self, model: nn.Module, aside: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        into, found = io.BytesIO(), {}

        def reduce(tensor: Tensor) -> Any:
            if not aside(tensor):
                return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            found[id(tensor)] = tensor
            return _aside, (id(tensor),)

        writer = pickle.Pickler(into, pickle.HIGHEST_PROTOCOL)
        writer.dispatch_table = copyreg.dispatch_table | {Tensor: reduce, nn.Parameter: reduce}
        writer.dump(model)
        self.code, self.tensors = into.getvalue(), found

    def read(self) -> nn.Module:
        """Another model, with tensors of its own."""
        tensors = {
            key: nn.Parameter(t.detach().clone(), t.requires_grad) if type(t) is nn.Parameter else copy.deepcopy(t)
            for key, t in self.tensors.items()
        }

        class Reader(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                return tensors.__getitem__ if name == _aside.__name__ else super().find_class(module, name)

        return Reader(io.BytesIO(self.code)).load()


def _aside(key: int) -> Tensor:
    """Stands in the bytes for a tensor that is kept beside them."""
    raise LookupError(key)


def seed(number: int) -> None:
    """As `torch.manual_seed`, which writes down a stack trace for each device that does not run yet."""
    if torch.cuda.is_initialized():
        torch.manual_seed(number)
    torch.default_generator.manual_seed(number)


def perturb(model: nn.Module) -> None:
    """Move every trainable a little, as training would: large enough to be seen in the output, the same for the same key."""
    generator = torch.Generator()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator.manual_seed(zlib.crc32(key.encode()))
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def loss(y: Tensor) -> Tensor:
    """Weighs each output by another number: the squares of CLIP's features sum to 1 whatever the adapter does."""
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


class Losses:
    """What `prepare` is given: the losses of two batches, as often as they are asked for."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family = model, family

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(2):
            yield loss(self.family(self.model))


def lacks(method: Method, anatomy: Anatomy, quantised: bool = False) -> str | None:
    """What of a method's `suits`, `needs` and tower a family has not."""
    if method.suits and anatomy.family not in method.suits:
        return f"is no {method.suits[0]}"
    if method.tower is not None and method.tower not in anatomy.blocks:
        return f"tower {method.tower}"
    towers = [tower for tower in anatomy.blocks if method.tower in (None, tower)]
    streams = [anatomy.streams.get(tower) for tower in towers]
    for need, has in (
        ("quantised", quantised),
        ("stream", all(streams)),
        ("features", all(streams) or bool(anatomy.rises)),
        ("tokens", all(s is not None and s.takes_tokens for s in streams)),
        ("pair", {"image", "text"} <= anatomy.blocks.keys()),
        ("cross", "cross_k" in anatomy.roles()),
        ("positions", all(s is not None and not s.rotary for s in streams)),
        ("gates", all(step.gate is not None for step in anatomy.sublayers)),
        ("inputs", all(place.called for place in anatomy.places if method.tower in (None, place.tower))),
        (
            "grid",
            all(s.grid for name, s in anatomy.streams.items() if name is None or name in towers or not any(streams)),
        ),
    ):
        if need in method.needs and not has:
            return need
    return None


def usual_families() -> dict[str, Family]:
    """A tiny timm ViT, and a tiny open_clip model where open_clip is installed."""
    import timm

    def pictures(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: {name: torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))}

    def vit() -> nn.Module:
        sizes: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=48, num_heads=3, depth=2, num_classes=5)
        return timm.create_model("vit_tiny_patch16_224", init_values=0.5, **sizes)

    found = {"vit": Family(vit, pictures("x"))}
    try:
        import open_clip
    except ImportError:
        return found
    vision: Any = dict(image_size=32, layers=2, width=64, head_width=16, patch_size=8)
    words: Any = dict(context_length=12, vocab_size=100, width=32, heads=2, layers=2)
    text = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(3))
    text[:, -1] = 99
    clip = Family(
        lambda: open_clip.CLIP(16, vision, words), lambda: pictures("image")() | {"text": text},
        lambda y: torch.cat(y[:2]), exact=False,
    )  # fmt: skip
    return found | {"clip": clip}
