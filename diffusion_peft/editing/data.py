"""Pairs of source and target with an instruction: two folders, a table, a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_data.errors import listing
from peft_data.pictures import UNREADABLE, is_picture, read_picture
from PIL import Image

from diffusion_peft.data.paired import TABLES, by_name, check_whole, column_of, lone, table_in, table_rows, train_split
from diffusion_peft.data.pictures import Picture, read_caption
from diffusion_peft.editing.options import SOURCE, TARGET, USUAL, WORLD
from peft_core.errors import PeftError

WORDS = "instructions"


@dataclass(frozen=True)
class Edit:
    """A picture and what became of it; `target.caption` is the instruction."""

    source: Picture
    target: Picture


Row = tuple[str, Path | Image.Image, Path | Image.Image, str | None]
"""Name, source, target, instruction."""


def open_edits(data: str, options: dict[str, Any], prompt: str | None = None) -> list[Edit]:
    """The pairs, all checked.

    Args:
        options: of `--edit`.
        prompt: the instruction of all of them.

    Raises:
        PeftError: no such data, pairs without a half (all are named), that cannot be read, of two shapes or without an
            instruction, a column that is missing.
    """
    place = Path(data).expanduser()
    if data.startswith(WORLD):
        return _drawn(data, prompt)
    if data.startswith("hf/"):
        rows = _of_data_set(data, options, prompt)
    elif (table := table_in(place)) is not None:
        rows = _listed(table, options, prompt)
    elif place.is_dir():
        rows = _in_folders(place)
    else:
        raise PeftError(
            f"there is no folder {place}: give one with source/ and target/, or with {' or '.join(TABLES)}."
        )
    if not rows:
        raise PeftError(f"there is no pair in {data}.")
    edits = list(_checked(rows, prompt))
    if silent := [edit.target.name for edit in edits if not edit.target.caption]:
        raise PeftError(
            f"{len(silent)} of {len(edits)} pairs of {data} have no instruction (the first is {silent[0]}): give "
            f"{WORDS}/NAME.txt, a column of a table, or one --prompt for all."
        )
    return edits


def _checked(rows: Sequence[Row], prompt: str | None) -> Iterator[Edit]:
    broken, odd, found = [], [], []
    for name, *sides, text in rows:
        try:
            (w, h), (wide, high) = sizes = [read_picture(side).size for side in sides]  # type: ignore[arg-type]
        except UNREADABLE as error:
            broken.append(f"{name} ({str(error).partition(chr(10))[0] or type(error).__name__})")
            continue
        if abs(w * high - wide * h) > max(w, h):
            odd.append(f"{name}: the source is {w} × {h}, its target {wide} × {high}")
        source, target = (
            Picture(side, prompt or text, name, height, width)  # type: ignore[arg-type]
            for side, (width, height) in zip(sides, sizes, strict=True)
        )
        found.append(Edit(source, target))
    if broken:
        raise PeftError(f"{len(broken)} pairs cannot be read, take them out or get them again:{listing(broken)}")
    if odd:
        raise PeftError(f"{len(odd)} targets have another shape than their source:{listing(odd)}")
    yield from found


def _in_folders(folder: Path) -> list[Row]:
    """source/NAME.png, target/NAME.png, and the instruction in instructions/NAME.txt or beside the target."""
    for name in (SOURCE, TARGET):
        if not (folder / name).is_dir():
            raise PeftError(f"{folder} has no {name}/: a folder of pairs has {SOURCE}/ and {TARGET}/, or {TABLES[0]}.")
    sources, targets = (by_name(folder / name, is_picture) for name in (SOURCE, TARGET))
    check_whole(lone((SOURCE, "source", sources), (TARGET, "target", targets)), folder)
    rows: list[Row] = []
    for stem, target in targets.items():
        texts = (folder / WORDS / f"{stem}.txt", target.with_suffix(".txt"), sources[stem].with_suffix(".txt"))
        text = next((read_caption(each) for each in texts if each.is_file()), None)
        rows.append((stem, sources[stem], target, text))
    return rows


def _listed(table: Path, options: dict[str, Any], prompt: str | None) -> list[Row]:
    """A row of a .jsonl or .csv file a pair; file names are relative to its folder."""
    rows: list[Row] = []
    halves = []
    for number, row in table_rows(table):
        where = f"line {number} of {table}"
        *sides, text = _values(row, [*row], options, prompt, where)
        files = source, target = [table.parent / str(side or "") for side in sides]
        for part, side, file in zip((SOURCE, TARGET), sides, files, strict=True):
            if not file.is_file():
                halves.append(f"{where} names {side}, which is not there" if side else f"{where} names no {part}")
        rows.append((where, source, target, None if text is None else str(text)))
    check_whole(halves, table.parent)
    return rows


def _of_data_set(data: str, options: dict[str, Any], prompt: str | None) -> list[Row]:
    """A Hugging Face data set's train split, its columns by name."""
    table, halves = train_split(data), []
    rows: list[Row] = []
    for number, row in enumerate(table):
        name = f"row {number} of {data}"
        source, target, text = _values(row, table.column_names, options, prompt, name)
        if source is None or target is None:
            halves.append(name)
        else:
            rows.append((name, source, target, text))
    check_whole(halves, data)
    return rows


def _drawn(name: str, prompt: str | None) -> list[Edit]:
    from peft_data.world.edits import COUNTS, draw_edits

    drawn = draw_edits(name, COUNTS["train"])
    sides = [
        [Image.fromarray(pixels) for pixels in side.permute(0, 2, 3, 1).contiguous().numpy()]
        for side in (drawn.sources, drawn.targets)
    ]
    return [
        Edit(*(Picture(side, prompt or text, f"{name}/{number:04d}", side.height, side.width) for side in pair))
        for number, (text, *pair) in enumerate(zip(drawn.instructions, *sides, strict=True))
    ]


def _values(
    row: dict[str, Any], columns: list[str], options: dict[str, Any], prompt: str | None, where: str
) -> tuple[Any, Any, Any]:
    """Source, target and instruction, the last None where one prompt is for all."""
    parts = [part for part in USUAL if part != "instruction" or prompt is None]
    found = {
        part: row[column_of(columns, options[f"{part}_column"], USUAL[part], f"--edit.{part}_column", where)]
        for part in parts
    }
    return found["source"], found["target"], found.get("instruction")
