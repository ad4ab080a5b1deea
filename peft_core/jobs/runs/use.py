"""A finished run of a classifier: what it predicts, and how predictions are printed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from peft_data.augment import normalise
from peft_data.pictures import UNREADABLE, Fit, is_picture, read_picture
from peft_data.walk import files_in
from PIL import Image
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.runs.folder import read_run_config
from peft_core.jobs.runs.predictions import Prediction, as_classes, predictions
from peft_core.saved.card import CARD, read_card
from peft_core.values import Positive, Range, typed

Side = Annotated[int, Range(1, 8192)]
OF_CARD: dict[str, Any] = {
    "class_names": list[str], "input_size": tuple[Side, Side], "resize": Literal["squash", "crop"],
    "crop_pct": Annotated[float, Range(above=0, most=1)], "interpolation": Literal["nearest", "bilinear", "bicubic", "lanczos"],
    "mean": tuple[float, float, float], "std": tuple[Positive, Positive, Positive],
}  # fmt: skip
"""What of a card says how pictures come to the model."""


def in_batches(ready: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Pictures, `size` at a time, the last few fewer."""
    rest = iter(ready)
    while batch := list(itertools.islice(rest, size)):
        yield batch


@dataclass(frozen=True)
class Run:
    """What `peft_core.load_run` gives for a classifier.

    Args:
        model: the adapted timm model in eval mode; logits `B C` of normalised pictures.
        class_names: C names.
        mean, std: of the channels, which go from 0 to 1.
        fit: how a picture comes to the model's size.
        card: the adapter's card.
        config: the run's config.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit
    card: dict[str, Any]
    config: dict[str, Any]
    columns: ClassVar[tuple[str, ...]] = ("class", "probability")
    """Of what `predict` prints of a picture."""

    def cells(self, prediction: Any, top: int) -> list[tuple[str, ...]]:
        """A prediction as rows of `columns`, the `top` likeliest first."""
        return prediction.cells(self.class_names, top)

    def more(self) -> dict[str, Any]:
        """What a file of its weights must know besides."""
        return {}

    def listed(self, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The same for JSON."""
        return as_classes(self.columns, cells)

    def transform(self, image: str | Path | Image.Image | Tensor) -> Tensor:
        """A picture (a path, a PIL image, or uint8 `3 H W`) as the model takes it: float `3 H W`.

        Raises:
            PeftError: the file is missing or no picture.
        """
        return normalise(self.pixels(image)[None], self.mean, self.std)[0]

    def pixels(self, image: str | Path | Image.Image | Tensor) -> Tensor:
        """A picture at the model's size, uint8 `3 H W`."""
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                raise PeftError(f"a picture as a tensor is uint8 3 H W, not {image.dtype} {tuple(image.shape)}.")
            return self.fit.tensor(image[None].cpu())[0]
        source = Path(image) if isinstance(image, str) else image
        if isinstance(source, Path) and not source.is_file():
            raise PeftError(f"there is no picture {source}.")
        try:
            return torch.from_numpy(self.fit.picture(read_picture(source)).copy())
        except UNREADABLE as error:
            raise PeftError(
                f"{image} is no picture that can be read ({str(error) or type(error).__name__})."
            ) from error

    def ready(self, image: Any) -> Tensor:
        """What `stream` collects of a picture, read and checked: here it at the model's size."""
        return self.pixels(image)

    def predict(self, images: Any, batch_size: int = 64) -> list[Prediction]:
        """The class of each picture: paths, PIL images or uint8 tensors, one, several, or a batch `B 3 H W`."""
        one = isinstance(images, (str, Path, Image.Image)) or (isinstance(images, Tensor) and images.ndim == 3)
        return list(self.stream([images] if one else images, batch_size))  # type: ignore

    def found(self, paths: Sequence[str]) -> list[Path]:
        """Pictures among files and, searched through, folders, in order.

        Raises:
            PeftError: a path that does not exist, or no picture at all.
        """
        return search(paths, "picture", lambda folder: files_in(folder, is_picture))

    def stream(self, images: Iterable, batch_size: int = 64) -> Iterator[Prediction]:
        for batch in in_batches((self.ready(image) for image in images), batch_size):
            yield from self._predict(batch)

    @torch.inference_mode()
    def _predict(self, batch: list[Tensor]) -> Iterator[Prediction]:
        device = next(self.model.parameters()).device
        yield from self.said(self.model(normalise(torch.stack(batch).to(device), self.mean, self.std)))

    def said(self, outputs: Tensor) -> Iterator[Any]:
        """What the model's outputs for some pictures say of each."""
        return predictions(outputs, self.class_names)


@dataclass(frozen=True)
class TaskRun(Run):
    """A run whose predictions are what its task says."""

    task: Any = None

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.task.columns

    def cells(self, prediction: Any, top: int) -> list[tuple[str, ...]]:
        return self.task.cells(prediction, top)

    def listed(self, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        return self.task.listed(cells)

    def said(self, outputs: Tensor) -> Iterator[Any]:
        return self.task.predictions(outputs)

    def more(self) -> dict[str, Any]:
        return self.task.card()


def read_trained(path: Path, program: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A run's config, its adapter's card, and of the card what every `Run` has: class_names, mean, std and fit.

    Raises:
        PeftError: no run folder, no adapter in it yet, or one of something else.
    """
    config = read_run_config(path)
    if not (path / "adapter").is_dir():
        raise PeftError(
            f"{path} has no adapter yet: give its `{config['command']}` again, which goes on where it stopped."
        )
    card = {"interpolation": Fit.interpolation} | read_card(path / "adapter")
    for key, hint in OF_CARD.items():
        if key not in card:
            raise PeftError(f"{path}/adapter was not written by `{program} fit`: its card has no {key}.")
        card[key] = typed(card[key], hint, f"{key} in {path / 'adapter' / CARD}")
    fit = Fit(tuple(card["input_size"]), card["resize"], card["crop_pct"], card["interpolation"])  # type: ignore
    return config, card, {key: tuple(card[key]) for key in ("class_names", "mean", "std")} | {"fit": fit}


def as_metadata(run: Run) -> dict[str, str]:
    """What a file of weights says of the pictures and classes of its model: JSON by key."""
    about = {
        "class_names": list(run.class_names), "mean": list(run.mean), "std": list(run.std), "input_size": list(run.fit.size),
        "resize": run.fit.mode, "crop_pct": run.fit.crop_pct, "interpolation": run.fit.interpolation,
        "backbone": run.config["backbone"],
    }  # fmt: skip
    about |= run.more()
    return {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}


def search(paths: Sequence[str], what: str, inside: Callable[[Path], list[Path]]) -> list[Path]:
    """The files among these paths, and what is `inside` the folders among them.

    Raises:
        PeftError: a path that does not exist, or nothing found.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise PeftError(f"there is no file or folder {path}.")
        found += inside(path) if path.is_dir() else [path]
    if not found:
        raise PeftError(f"there is no {what} in {', '.join(map(str, paths))}.")
    return found


def print_classes(per_class: Mapping[str, float | None]) -> None:
    """The accuracy of each class, a dash where it has no pictures."""
    for name, share in per_class.items():
        print(f"  {'   –  ' if share is None else f'{share:.4f}'}  {name}")


def print_predictions(
    run: Run,
    pictures: Sequence[str],
    program: str,
    top: int,
    batch_size: int,
    out: str | None = None,
    as_json: bool = False,
) -> int:
    """The `top` likeliest classes of each picture as CSV or JSON, printed or written to `out`; unreadable pictures are said at
    the end. The exit code."""

    def lines(ready: Iterable) -> Iterator[list[tuple[str, ...]]]:
        for prediction in run.stream(ready, batch_size):
            yield run.cells(prediction, top)

    return print_table(run, pictures, program, run.columns, lines, out, as_json, run.listed)


class Ready:
    """These pictures, each as `run.ready` makes it; those that cannot be read are passed over, to be told at the end."""

    def __init__(self, run: Any, paths: Sequence[str | Path]) -> None:
        self.run, self.paths = run, paths
        self.read: list[Any] = []
        self.bad: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        for path in self.paths:
            try:
                pixels = self.run.ready(path)
            except PeftError as error:
                self.bad.append(str(error))
            else:
                self.read.append(path)
                yield pixels

    def told(self, program: str) -> int:
        """The exit code, once what cannot be read is told."""
        for sentence in self.bad:
            print(f"{program}: {sentence}", file=sys.stderr)
        return 2 if self.bad else 0


def print_table(
    run: Any, pictures: Sequence[str], program: str, columns: Sequence[str],
    lines: Callable[[Iterable], Iterator[Sequence[Sequence[str]]]], out: str | None = None,
    as_json: bool = False, listed: Callable[[Sequence[Sequence[str]]], dict[str, Any]] | None = None,
) -> int:  # fmt: skip
    """A CSV (or a list in JSON) of pictures, with what `lines` gives for each of those that `run` made ready, one or several
    rows of these columns; as `print_predictions`. In JSON a picture has its path and what `listed` makes of its rows."""
    ready = Ready(run, run.found(pictures))
    text = io.StringIO() if out is not None else sys.stdout
    writer = csv.writer(text, lineterminator="\n")
    found_of: list[dict[str, Any]] = []
    heading = [("path", *columns)]  # written with the first picture, once nothing was refused
    for row, cells in enumerate(lines(ready)):
        if as_json:
            said = listed(cells) if listed else as_classes(columns, cells)
            found_of.append({"path": str(ready.read[row])} | said)
        else:
            writer.writerows([*heading, *((ready.read[row], *each) for each in cells)])
            heading = []
    if not as_json:
        writer.writerows(heading)
    else:
        text.write(json.dumps(found_of, indent=1, ensure_ascii=False) + "\n")
    if out is not None and isinstance(text, io.StringIO):
        target = Path(out).expanduser()
        write_files(target.parent, {target.name: text.getvalue().encode(errors="backslashreplace")})
        print(f"{len(ready.read):,} pictures in {target}")
    return ready.told(program)
