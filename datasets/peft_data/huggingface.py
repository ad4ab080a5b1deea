"""Data sets of the Hugging Face hub or in its format on disk, read with its own library `datasets`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from peft_data.base import ClassificationData, Pictures, no_pictures
from peft_data.errors import DataError, nearest
from peft_data.findings import with_findings
from peft_data.reach import unreachable
from peft_data.splits import split_of, tenth_as_val, three_parts

NAMES = {"hf/<repo>": "a data set of the Hugging Face hub (hf/uoft-cs/cifar10), or a local one (hf/path/to/it)"}
_IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def claims(path: Path) -> bool:
    """Whether it is a data set that `datasets` saved to disk."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ClassificationData:
    """`hf/<repo or local path>`. `root` is the library's cache folder; for one opened by its path, that path.

    Without a test split, validation is the test set; without a validation split, a tenth of train is; with train alone
    it is split 60/20/20. All are drawn by the seed. Nothing is decoded here.

    Args:
        config: the data set's configuration, where it has several.
        image_column, label_column: their names, where they are not the usual ones.

    Raises:
        DataError: the data set cannot be had, or has no train split or no such column.
    """
    by_name = name.startswith("hf/")
    parts = open_tables(name.removeprefix("hf/"), root, config) if by_name else open_tables(str(root), None, config)
    found: dict[str, Any] = dict.fromkeys(("train", "val", "test"))
    for word, part in parts.items():
        if (split := split_of(word)) and found[split] is None:
            found[split] = part
    table = found["train"]
    if table is None:
        raise DataError(f"{name} has no train split: it has {', '.join(parts)}")
    image = _column(name, table.column_names, image_column, _IMAGE_COLUMNS, "image_column")
    label = _column(name, table.column_names, label_column, _LABEL_COLUMNS, "label_column")
    classes, number = _classes(name, [part for part in found.values() if part is not None], label)
    splits = {part: _pictures(name, part, rows, image, label, number) for part, rows in found.items()}
    train, val, test = splits.values()
    notes, drawn = [], ("val",) if not len(val) else ()
    if not len(test) and not len(val):
        drawn = ("val", "test")
        train, val, test = three_parts(train, 0.2, 0.2, seed)
        notes.append(f"{name} has a train split alone: it is split 60/20/20 by the seed {seed}")
    elif not len(test):
        test, val, drawn = val, no_pictures("val"), ("val",)
        notes.append(f"{name} has no test split: its validation split is the test set, and val a tenth of train")
    if not len(val):
        train, val = tenth_as_val(train, seed)
    return with_findings(ClassificationData(name, classes, train, val, test), notes, drawn=drawn)


class TablePictures(Sequence):
    """The pictures of a column, each a `PIL.Image` when indexed."""

    def __init__(self, table: Any, column: str) -> None:
        from datasets import Image as ImageFeature

        self.table = table.cast_column(column, ImageFeature(decode=False)).select_columns([column])
        self.column = column
        self.fingerprint = f"{table._fingerprint} {column}"

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Image.Image:
        cell = self.table[int(i)][self.column]
        if cell is None:
            raise ValueError("is missing")
        return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


def open_tables(repo: str, cache: str | None = None, config: str | None = None) -> dict[str, Any]:
    """The splits of a data set of the hub or on disk, as tables of `datasets`.

    Args:
        repo: its name on the hub, or a folder.
        cache: the library's cache folder.
        config: the data set's configuration, where it has several.

    Raises:
        DataError: it cannot be had.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    import datasets

    folder = Path(repo).expanduser()
    if not folder.exists() and not constants.HF_HUB_OFFLINE:
        _reach(constants.ENDPOINT, repo)
    try:
        opened = (
            datasets.load_from_disk(str(folder))
            if claims(folder)
            else datasets.load_dataset(str(folder) if folder.exists() else repo, config, cache_dir=cache)
        )
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the Hugging Face data set {repo!r} cannot be opened ({why}): check its name, or fetch it where there is "
            "a network with load_dataset(…).save_to_disk(FOLDER) and give that folder"
        ) from error
    return dict(opened) if isinstance(opened, dict) else {"train": opened}  # type: ignore


def _reach(hub: str, repo: str) -> None:
    if reason := unreachable(hub):
        raise DataError(
            f"{hub} cannot be reached to open {repo!r} ({reason}): set HF_HUB_OFFLINE=1 to use what its cache has, give a "
            "local folder (hf/FOLDER), or wait longer for a slow proxy with VISUAL_PEFT_WAIT=60"
        )


def _column(name: str, columns: list[str], asked: str | None, usual: tuple[str, ...], option: str) -> str:
    if asked is not None and asked not in columns:
        raise DataError(f"{name} has no column {asked!r}{nearest(asked, columns)}: it has {', '.join(columns)}")
    found = asked or next((column for column in usual if column in columns), None)
    if found is None:
        raise DataError(f"{name} has the columns {', '.join(columns)}: say with {option} which one it is")
    return found


def _classes(name: str, tables: list[Any], label: str) -> tuple[tuple[str, ...], dict]:
    feature = tables[0].features[label]
    if getattr(feature, "names", None):
        return tuple(feature.names), {i: i for i in range(len(feature.names))}
    values = sorted({value for table in tables for value in table.unique(label) if value is not None})
    if not values or not all(isinstance(value, (int, str)) for value in values):
        raise DataError(f"the column {label!r} of {name} has no classes: choose one of words or whole numbers")
    return tuple(map(str, values)), {value: i for i, value in enumerate(values)}


def _pictures(name: str, part: str, table: Any, image: str, label: str, number: dict) -> Pictures:
    if table is None:
        return no_pictures(part)
    values = list(table[label])
    wrong = next((row for row, value in enumerate(values) if value not in number), None)
    if wrong is not None:
        raise DataError(f"row {wrong} of {part} of {name} has the label {values[wrong]!r}: leave out such rows")
    labels = torch.tensor([number[value] for value in values], dtype=torch.int64)
    return Pictures(TablePictures(table, image), labels, split=part)
