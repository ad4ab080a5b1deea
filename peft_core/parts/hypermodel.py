"""A hypermodel: from the features of a few labelled pictures to the factors of a low-rank change at every place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.files import read_json, write_files
from peft_core.grafts.graft import Graft

WEIGHTS, ABOUT = "hypermodel.safetensors", "hypermodel.json"
Factors = dict[str, tuple[Tensor, Tensor]]
"""A (r, in) and B (out, r) of each place."""


class Hypermodel(nn.Module):
    """B A = (U u)(d D) at each place: U (out, a) and D (b, in) have orthonormal columns and rows and are frozen, u (a, r) and
    d (r, b) are what a transformer decoder gives, whose tokens are the places, and which attends to one token a class.

    w_0 = (u, d) is learnt, u zero and d Xavier-normal at first; `turns` times w ← w + Linear(LN(decoder(w, classes))), where
    that linear starts as N(0, 1e-3²). A class's token is made of the mean and the spread of its pictures' features.

    Args:
        places: out and in of each, by a name of its own.
        features: D, how wide they are.
        rank: r.
        up, down: a and b, or out and in where those are smaller.
        width, layers: of the decoder.
        turns: how often it looks at its own prediction.
        seed: of U and D, which are saved.
    """

    temperature: nn.Parameter

    def __init__(
        self, places: Mapping[str, Sequence[int]], features: int, rank: int = 1, up: int = 100, down: int = 50,
        width: int = 128, layers: int = 2, turns: int = 2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.places = {name: (int(shape[0]), int(shape[1])) for name, shape in places.items()}
        self.settings = dict(features=features, rank=rank, up=up, down=down, width=width, layers=layers, turns=turns)
        self.rank, self.up, self.down, self.turns = rank, up, down, turns
        chance = torch.Generator().manual_seed(seed)
        for number, (out, inner) in enumerate(self.places.values()):
            self.register_buffer(f"U{number}", orthonormal(out, min(up, out), chance))
            self.register_buffer(f"D{number}", orthonormal(inner, min(down, inner), chance).t().contiguous())
        d = nn.init.xavier_normal_(torch.empty(len(self.places), rank, down)).flatten(1)
        self.start = nn.Parameter(torch.cat((torch.zeros(len(d), up * rank), d), 1))
        self.position = nn.Parameter(torch.randn(len(d), width) * 0.02)
        self.reads = nn.Sequential(nn.LayerNorm(2 * features), nn.Linear(2 * features, width))
        self.enters = nn.Linear(self.start.shape[1], width)
        heads = next(heads for heads in range(max(1, width // 32), 0, -1) if width % heads == 0)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.leaves = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.start.shape[1], bias=False))
        leaves: Any = self.leaves[1]
        nn.init.normal_(leaves.weight, std=1e-3)
        self.temperature = nn.Parameter(torch.tensor(10.0 / features).log())

    def forward(self, features: Annotated[Tensor, "N D"], labels: Annotated[Tensor, "N"]) -> Factors:
        mean, spread, _ = by_class(features, labels)
        seen = self.reads(torch.cat((mean, spread), 1))[None]
        w = self.start
        for _ in range(self.turns):
            h = (self.enters(w) + self.position)[None]
            for layer in self.decoder:
                h = layer(h, seen)
            w = w + self.leaves(h[0])
        us, ds = w.split((self.up * self.rank, self.down * self.rank), 1)
        found: Factors = {}
        for number, (name, u, d) in enumerate(zip(self.places, us, ds, strict=True)):
            outer, inner = (getattr(self, f"{letter}{number}") for letter in "UD")
            u, d = u.view(self.up, self.rank)[: outer.shape[1]], d.view(self.rank, self.down)[:, : len(inner)]
            found[name] = d @ inner, outer @ u
        return found

    def nearest_mean(
        self, features: Annotated[Tensor, "N D"], labels: Annotated[Tensor, "N"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """W (C, D) and b (C) of a head that gives −t ‖f − μ_c‖², but for what all classes share, and which classes those are."""
        mean, _, classes = by_class(features, labels)
        t = self.temperature.exp()
        return 2 * t * mean, -t * mean.square().sum(1), classes

    def write(self, folder: Path, **about: Any) -> None:
        """Into a folder, with what else is to be known of it."""
        card = {"places": {name: list(shape) for name, shape in self.places.items()}, **self.settings, **about}
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_files(folder, {WEIGHTS: save(tensors), ABOUT: (json.dumps(card, indent=2) + "\n").encode()})


def read_hypermodel(folder: str | os.PathLike) -> Hypermodel:
    """That of a folder.

    Raises:
        PeftError: there is none, or one that cannot be read.
    """
    at, remedy = Path(folder).expanduser(), "make one with `vision_peft hyper_tuning`"
    if not (at / ABOUT).is_file() or not (at / WEIGHTS).is_file():
        raise PeftError(f"{folder} holds no hypermodel: {remedy}.")
    card: Any = read_json(at / ABOUT, remedy)
    try:
        known = ("features", "rank", "up", "down", "width", "layers", "turns")
        model = Hypermodel(card["places"], **{name: int(card[name]) for name in known})
        model.load_state_dict(load_file(at / WEIGHTS))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, SafetensorError) as error:
        raise PeftError(
            f"{folder} holds a hypermodel that cannot be read ({type(error).__name__}): {remedy}."
        ) from None
    return model.requires_grad_(False).eval()


class Reads(Graft):
    """What its module receives, B D, put on a list while somebody gathers it."""

    scalable = False

    def __init__(self) -> None:
        super().__init__()
        self.gathered: list[Tensor] | None = None

    def before(self, x: Tensor) -> Tensor:
        if self.gathered is not None:
            self.gathered.append(x.detach().float())
        return x

    @torch.no_grad()
    def gather(self, pairs: Iterable[tuple[Any, Tensor]], most: int) -> tuple[Tensor, Tensor]:
        """What it receives of the first pictures, and their classes, of pairs whose losses make the model run."""
        self.gathered, classes = [], []
        try:
            for _, labels in pairs:
                classes.append(labels.to(self.gathered[-1].device))
                if sum(map(len, classes)) >= most:
                    break
            return torch.cat(self.gathered)[:most], torch.cat(classes)[:most]
        finally:
            self.gathered = None


def by_class(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and spread (C, D) of each class that there is, and which those are."""
    classes, own = labels.unique(return_inverse=True)
    one_hot = nn.functional.one_hot(own, len(classes)).to(features.dtype)
    shares = one_hot.t() / one_hot.sum(0)[:, None]
    mean = shares @ features
    # of √0 there is no gradient
    spread = (shares @ (features - mean[own]).square()).clamp(min=1e-12).sqrt()
    return mean, spread, classes


def orthonormal(rows: int, columns: int, chance: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=chance))[0]
