"""Pairs of picture and condition: a folder, a metadata file, a Hugging Face data set, the drawn world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_data.errors import listing
from peft_data.pictures import UNREADABLE, is_picture, read_picture
from PIL import Image

from diffusion_peft.control.conditions import check_condition
from diffusion_peft.control.grounding import check_boxes
from diffusion_peft.data.paired import by_name, check_column, check_whole, lone, train_split
from diffusion_peft.data.pictures import METADATA, Picture, read_caption, read_rows
from peft_core.errors import PeftError
from peft_core.files import read_json

USUAL = {
    "image": ("file_name", "image", "target", "picture"),
    "condition": ("condition", "conditioning_image", "source", "control"),
    "caption": ("text", "caption", "prompt"),
    "boxes": ("boxes", "bboxes"),
    "phrases": ("phrases", "names"),
}


@dataclass(frozen=True)
class Grounded:
    """Boxes (left, top, right, bottom in [0, 1]) and a phrase for each."""

    boxes: tuple[tuple[float, ...], ...]
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A picture with its caption, and its condition; None where it is to be computed from the picture."""

    picture: Picture
    condition: Path | Image.Image | Grounded | None


def open_pairs(data: str, options: dict[str, Any], split: str = "train") -> tuple[str, list[Pair]]:
    """The name of the condition, and the pairs, all checked.

    Raises:
        PeftError: no such data, halves of pairs missing (all are named), conditions of another shape than their picture,
            boxes that are none, an unknown condition.
    """
    if data.startswith("world/"):
        return _drawn(data, options["condition"], split)
    if options["condition"] is None:
        raise PeftError("which condition? Name it with --control.condition, e.g. --control.condition canny.")
    name = check_condition(options["condition"])
    if data.startswith("hf/"):
        rows = _table_rows(data, options, name)
    else:
        folder = Path(data).expanduser()
        if not folder.is_dir():
            raise PeftError(
                f"there is no folder {folder}: give one with images/ and conditions/, or world/control/{name}."
            )
        rows = _listed_rows(folder, options, name) if (folder / METADATA).is_file() else _folder_rows(folder, name)
    pairs = list(_checked(rows, name))
    if not pairs:
        raise PeftError(f"there is no pair in {data}.")
    return name, pairs


Row = tuple[str, Path | Image.Image, Path | Image.Image | Grounded | None, str | None]
"""Name, picture, condition, caption."""


def _checked(rows: Sequence[Row], kind: str) -> Iterator[Pair]:
    broken, odd = [], []
    pairs: list[Pair] = []
    for name, source, condition, caption in rows:
        try:
            size = read_picture(source).size
            other = size if condition is None or isinstance(condition, Grounded) else read_picture(condition).size
        except UNREADABLE as error:
            broken.append(f"{name} ({str(error).partition(chr(10))[0] or type(error).__name__})")
            continue
        if abs(other[0] * size[1] - other[1] * size[0]) > max(size) and kind != "picture":
            odd.append(f"{name}: the picture is {size[0]} × {size[1]}, its condition {other[0]} × {other[1]}")
        pairs.append(Pair(Picture(source, caption, name, size[1], size[0]), condition))
    if broken:
        raise PeftError(f"{len(broken)} pairs cannot be read, take them out or get them again:{listing(broken)}")
    if odd:
        raise PeftError(f"{len(odd)} conditions have another shape than their picture:{listing(odd)}")
    yield from pairs


def _folder_rows(folder: Path, kind: str) -> list[Row]:
    """images/NAME.png, conditions/NAME.png (.json for boxes), captions/NAME.txt or images/NAME.txt."""
    images, conditions = folder / "images", folder / "conditions"
    if not images.is_dir():
        raise PeftError(
            f"{folder} has no images/: a folder of pairs has images/, conditions/ and captions/, or {METADATA}."
        )
    pictures = by_name(images, is_picture)
    wanted = (lambda f: f.suffix.lower() == ".json") if kind == "box" else is_picture
    others = by_name(conditions, wanted) if conditions.is_dir() else {}
    if others or kind in ("box", "mask"):
        check_whole(lone(("images", "picture", pictures), ("conditions", "condition", others)), folder)
    rows: list[Row] = []
    for stem, file in pictures.items():
        condition: Any = others.get(stem)
        if kind == "box":
            condition = read_boxes(others[stem])
        texts = [folder / "captions" / f"{stem}.txt", file.with_suffix(".txt")]
        text = next((read_caption(each) for each in texts if each.is_file()), None)
        rows.append((f"images/{file.relative_to(images).as_posix()}", file, condition, text))
    return rows


def read_boxes(file: Path) -> Grounded:
    """A JSON file like {"boxes": [[0.1, 0.2, 0.5, 0.9]], "phrases": ["a dog"]}.

    Raises:
        PeftError: it is no such file, or its boxes are none (`check_boxes`).
    """
    content = read_json(file, "write it anew")
    try:
        boxes, phrases = content["boxes"], content["phrases"]
        return grounded(boxes, phrases, str(file))
    except (KeyError, TypeError) as error:
        raise PeftError(
            f'{file} must be like {{"boxes": [[0.1, 0.2, 0.5, 0.9]], "phrases": ["a dog"]}} ({type(error).__name__}: {error}).'
        ) from error


def grounded(boxes: Any, phrases: Any, where: str) -> Grounded:
    check_boxes(boxes, phrases, where)
    return Grounded(tuple(tuple(map(float, box)) for box in boxes), tuple(map(str, phrases)))


def _listed_rows(folder: Path, options: dict[str, Any], kind: str) -> list[Row]:
    """One line of metadata.jsonl a pair; file names are relative to the folder."""
    rows, missing = [], []
    for number, row in read_rows(folder / METADATA):
        where = f"line {number} of {folder / METADATA}"
        name, source, condition, caption = _row(row, list(row), options, kind, where)
        paths = [folder / str(part) for part in (source, condition) if isinstance(part, str)]
        missing += [
            f"{where} names {path.relative_to(folder)}, which is not there" for path in paths if not path.is_file()
        ]
        rows.append((str(source), folder / str(source),
                     folder / condition if isinstance(condition, str) else condition, caption))  # fmt: skip
    check_whole(missing, folder)
    return rows


def _table_rows(data: str, options: dict[str, Any], kind: str) -> list[Row]:
    """A Hugging Face data set's train split, its columns by name."""
    table, rows, halves = train_split(data), [], []
    for number in range(len(table)):
        name, source, condition, caption = _row(
            table[number], table.column_names, options, kind, f"row {number} of {data}"
        )
        if source is None or (condition is None and options["condition_column"]):
            halves.append(name)
        else:
            rows.append((name, source, condition, caption))
    check_whole(halves, data)
    return rows


def _row(row: dict[str, Any], columns: list[str], options: dict[str, Any], kind: str, where: str) -> tuple:
    found: dict[str, Any] = {}
    for part, usual in USUAL.items():
        asked = options[f"{part}_column"]
        check_column(columns, asked, where)
        found[part] = row.get(asked or next((column for column in usual if column in columns), ""))
    if found["image"] is None and not any(name in columns for name in USUAL["image"]):
        raise PeftError(
            f"{where} has the columns {', '.join(columns)}: say with --control.image_column which the pictures are."
        )
    condition = found["condition"]
    if kind == "box":
        condition = grounded(found["boxes"] or [], found["phrases"] or [], where)
    elif condition is None and kind == "mask":
        raise PeftError(f"{where} has no mask: say with --control.condition_column which column the masks are.")
    return where, found["image"], condition, found["caption"]


def _drawn(name: str, asked: str | None, split: str) -> tuple[str, list[Pair]]:
    from peft_data.world.control import COUNTS, draw_pairs, split_of

    condition, own = split_of(name)
    if asked is not None and check_condition(asked) != condition:
        raise PeftError(f"{name} has {condition}, but --control.condition is {asked}: leave it out.")
    split = own if own != "train" else split
    drawn = draw_pairs(condition, COUNTS[split], split)
    pictures = drawn.pictures.permute(0, 2, 3, 1).contiguous().numpy()
    conditions = None if drawn.conditions is None else drawn.conditions.permute(0, 2, 3, 1).contiguous().numpy()
    pairs = []
    for number, pixels in enumerate(pictures):
        picture = Picture(
            Image.fromarray(pixels), drawn.captions[number], f"{name}/{split}/{number:05d}", *pixels.shape[:2]
        )
        given: Any = Grounded(drawn.boxes[number], drawn.phrases[number])
        pairs.append(Pair(picture, given if conditions is None else Image.fromarray(conditions[number])))
    return condition, pairs
