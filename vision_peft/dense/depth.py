"""A distance for every pixel: the scale-invariant loss of logarithms; δ < 1.25, relative error, RMSE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from peft_data.base import ClassificationData
from peft_data.batches import Batch
from peft_data.depth.maps import DepthData
from PIL import Image
from torch import Tensor

from peft_core.errors import PeftError
from peft_core.jobs.reports import page
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.reports.scores import numbers
from peft_core.jobs.runs.process import tell
from peft_core.values import Positive, typed
from vision_peft.dense.model import resized
from vision_peft.dense.pixels import Pixels
from vision_peft.tasks.base import Meter, collected
from vision_peft.tasks.outcome import write

SHOWN, LOOKED_AT, SIDE = 24, 1_000, 64
"""Pictures in the report; training maps whose mean, spread and range are taken, and at which height and width."""
SHARE = 0.5
"""λ: of the squared mean that the loss forgives, a common factor of a picture's depths."""
FAINT, MOST = 1e-6, 65_535
"""The least depth that a logarithm is taken of, and the most that a PNG's number can be."""
KEPT = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "rmse_of_the_mean")


class DepthScores(NamedTuple):
    """Of one pass over a split: figures of each picture `N 6` (`KEPT`; NaN without a known pixel), and some predicted maps by
    their row."""

    figures: Tensor
    maps: Mapping[int, Tensor]

    @property
    def value(self) -> float:
        """δ₁: the mean over pictures of the share of pixels with max(ŷ/y, y/ŷ) < 1.25."""
        return self.means["delta1"]

    @property
    def means(self) -> dict[str, float]:
        return dict(zip(KEPT, self.figures.double().nanmean(0).tolist(), strict=True))


def figures_of(said: Tensor, true: Tensor, constant: float) -> Tensor:
    """δ₁, δ₂, δ₃ (shares of pixels with max(ŷ/y, y/ŷ) < 1.25, 1.25², 1.25³), mean |ŷ − y| / y, √ mean (ŷ − y)², and the last one
    of a constant; of each picture, over pixels with y > 0, `B 6`."""
    known = true > 0
    count = known.flatten(1).sum(1)
    true = true.clamp(min=FAINT)
    ratio = torch.maximum(said / true, true / said)

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0).flatten(1).sum(1) / count  # NaN where nothing is known

    shares = [mean((ratio < 1.25**power).float()) for power in (1, 2, 3)]
    errors = [mean((said - true).abs() / true), mean((said - true).square()).sqrt()]
    return torch.stack([*shares, *errors, mean((constant - true).square()).sqrt()], 1)


class Depthwise(Meter):
    """Figures of every scored picture, and the maps of the first pictures of this process."""

    def __init__(self, task: Depth) -> None:
        super().__init__()
        from torchmetrics import CatMetric

        self.task, self.seen, self.maps = task, CatMetric(), {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        said = self.task.finished(numbers(outputs))[:, 0]
        found = figures_of(said, batch.labels.to(said), self.task.finished(said.new_zeros(())).item())
        self.seen.update(torch.cat([batch.indices.to(found)[:, None], found.nan_to_num(nan=-1)], 1))  # which drops NaN
        for row, each in zip(batch.indices.tolist(), said, strict=True):
            if len(self.maps) < SHOWN:
                self.maps[row] = each.cpu()

    def scores(self) -> DepthScores:
        found = collected(self.seen)[:, 1:]
        scores = DepthScores(found.masked_fill(found < 0, torch.nan), dict(self.maps))
        self.maps.clear()
        return scores


class Depth(Pixels):
    """Eigen et al.'s loss (NeurIPS 2014), of standardised logarithms: mean_p e² − λ (mean_p e)², λ = ½, with
    e = z − (log y − μ) / σ at each pixel p whose depth y is known. A prediction is exp(σ z + μ), within [low, high].

    Args:
        centre, spread, low, high: μ, σ, and the range of depths, of the training pictures.
        scale: what a depth is multiplied by in a PNG.
    """

    name, score, output = "depth", "delta1", "depth"
    columns: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(
        self, class_names: Sequence[str], dense: Mapping[str, Any], centre: float, spread: float, low: float, high: float,
        scale: float,
    ) -> None:  # fmt: skip
        super().__init__(class_names, dense)
        self.centre, self.spread, self.low, self.high, self.scale = centre, spread, low, high, scale

    @classmethod
    def of(cls, data: ClassificationData, settings: Mapping[str, Any]) -> Depth:
        assert isinstance(data, DepthData)
        options, rows = cls.options(settings), data.train.labels
        rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).long()]
        depths = data.maps.at(rows.tolist(), (SIDE, SIDE))
        known = depths[depths > 0].double()
        if not len(known) or known.min() == known.max():
            what = f"have the depth {known[0]:g} alone" if len(known) else "know no depth: numbers above 0 are depths"
            raise PeftError(f"the training maps of {data.name} {what}, so that there is nothing to learn.")
        high = known.max().item()
        scale = data.maps.scale if data.maps.whole else 10.0 ** math.floor(math.log10(MOST / high))
        logs = known.log()
        figures = (logs.mean().item(), logs.std(correction=0).item(), known.min().item(), high)
        return cls(data.class_names, options, *figures, scale)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Depth:
        hints = {"depth_mean": float} | dict.fromkeys(
            ("depth_spread", "depth_low", "depth_high", "depth_scale"), Positive
        )
        found = (typed(card.get(key), hint, f"{key} in the adapter's card") for key, hint in hints.items())
        return cls(card["class_names"], typed(card.get("dense"), dict[str, Any], "dense in the adapter's card"), *found)

    def card(self) -> dict[str, Any]:
        own = {"mean": self.centre, "spread": self.spread, "low": self.low, "high": self.high, "scale": self.scale}
        return super().card() | {f"depth_{key}": value for key, value in own.items()}

    def maps(self, data: Any, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        return data.maps.at(rows, size)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = labels > 0
        true = (labels.clamp(min=FAINT).log() - self.centre) / self.spread
        off = torch.where(known, outputs.float()[:, 0] - true, 0).flatten(1)
        count = known.flatten(1).sum(1).clamp(min=1)
        each = off.square().sum(1) / count - SHARE * (off.sum(1) / count).square()
        return each.sum() / known.flatten(1).any(1).sum().clamp(min=1)

    def finished(self, outputs: Tensor) -> Tensor:
        return (outputs * self.spread + self.centre).exp().clamp(self.low, self.high)

    def meter(self) -> Depthwise:
        return Depthwise(self)

    def figures(self, scores: DepthScores | None) -> dict[str, Any]:
        if scores is None or math.isnan(scores.value):
            return dict.fromkeys((self.score,))
        return scores.means

    @classmethod
    def words(cls, results: Mapping[str, Any]) -> str:
        if results["delta1"] is None:
            return "no scored map knows a depth"
        return (
            f"δ < 1.25 of {results['delta1']:.4f}, relative error {results['abs_rel']:.4f}, RMSE {results['rmse']:.4g} "
            f"(of always saying the training mean: {results['rmse_of_the_mean']:.4g})"
        )

    def remarks(self, scores: DepthScores | None, history: Sequence[Mapping[str, Any]], **known: Any) -> list[str]:
        if scores is None:
            return []
        none, found = int(scores.figures[:, 0].isnan().sum()), scores.means
        lines = [f"{none} scored maps know no depth and do not count"] if none else []
        if found["rmse"] >= found["rmse_of_the_mean"]:
            lines.append("no better than always saying the mean: train longer, or look at the maps and their scale")
        return lines

    def write(self, run: Finished) -> dict[str, Any]:
        scores, pictures = run.scores, run.pictures
        if scores is None or pictures is None:
            return write(run, self)
        rows = [
            {"path": name, **dict(zip(KEPT, each, strict=True))}
            for name, each in zip(pictures.names, scores.figures.tolist(), strict=True)
        ]
        shown = ("Pictures: as they are, the depth, what was predicted (near is bright)", self._shown(run))
        return write(run, self, {"predictions.csv": page.csv_bytes(rows)}, [shown])

    def _shown(self, run: Finished) -> str:
        cells, pictures = [], run.pictures
        assert pictures is not None and run.scores is not None
        for row, said in sorted(run.scores.maps.items()):
            parts = [pictures.images[row].permute(1, 2, 0).numpy()]
            parts += [_coloured(each.numpy(), self.low, self.high) for each in (pictures.labels[row], said)]
            share = run.scores.figures[row, 0].item()
            cells.append(
                (Image.fromarray(np.concatenate(parts, 1)), f"{pictures.names[row]}: {100 * share:.0f} %", False)
            )
        return page.picture_grid(cells, wide=True)

    def how_to_read(self, model: Any) -> list[str]:
        lines = super().how_to_read(model)
        last = f"(outputs * {self.spread:.9g} + {self.centre:.9g}).exp().clamp({self.low:.9g}, {self.high:.9g})"
        return [*lines, f"depth = {last}"] if len(lines) > 1 else lines

    def predictions(self, outputs: Tensor) -> Iterator[Tensor]:
        """Of each picture its depths, 1 H W."""
        yield from self.finished(numbers(outputs)).cpu()

    def write_predictions(self, run: Any, paths: Sequence[str], out: str | None, batch_size: int, program: str) -> int:
        found = super().write_predictions(run, paths, out, batch_size, program)
        tell(f"note: a PNG's number divided by {self.scale:g} is the depth")
        return found

    def picture(self, prediction: Tensor, size: tuple[int, int]) -> Image.Image:
        whole = (resized(prediction[None], size)[0, 0] * self.scale).round().clamp(0, MOST)
        return Image.fromarray(whole.numpy().astype(np.uint16))


def _coloured(depths: np.ndarray, low: float, high: float) -> np.ndarray:
    """Depths H W as a picture H W 3, the near ones bright by their logarithm; grey where nothing is known."""
    from matplotlib import colormaps

    known = depths > 0
    place = np.log(high / np.where(known, depths, high)) / math.log(high / low)
    return np.where(known[..., None], colormaps["magma"](place, bytes=True)[..., :3], np.uint8(128))


TASK = Depth
