"""Captioned data sets of the Hugging Face hub or in its format on disk, read with its own library `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from peft_data.base import Pictures
from peft_data.errors import DataError
from peft_data.huggingface import TablePictures, claims, open_tables
from peft_data.pairs.base import PairData, Pairs, no_pairs, pairs_of, three_parts
from peft_data.pairs.folder import as_captions
from peft_data.pairs.table import CAPTIONS, IMAGES, column_of
from peft_data.splits import split_of

NAMES = {"hf/<repo>": "a captioned data set of the Hugging Face hub, or a local one (hf/path/to/it)"}

__all__ = ["claims", "load"]


def load(
    name: str,
    root: str | None,
    seed: int,
    *,
    config: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    val: float = 0.1,
    test: float = 0.1,
) -> PairData:
    """`hf/<repo or local path>`. A train split alone is split by the seed; a validation split alone is the test set.

    Args:
        config: the data set's configuration, where it has several.
        image_column, caption_column: their names, where they are not the usual ones; a cell may hold several captions.
        val, test: their parts, where there is a train split alone.

    Raises:
        DataError: the data set cannot be had, or has no train split or no such column.
    """
    by_name = name.startswith("hf/")
    tables = open_tables(name.removeprefix("hf/"), root, config) if by_name else open_tables(str(root), None, config)
    found: dict[str, Any] = {}
    for word, table in tables.items():
        if split := split_of(word):
            found.setdefault(split, table)
    if "train" not in found:
        raise DataError(f"{name} has no train split: it has {', '.join(tables)}")
    columns = found["train"].column_names
    image, caption = column_of(name, columns, image_column, IMAGES), column_of(name, columns, caption_column, CAPTIONS)
    made = {split: _pairs(name, table, image, caption, split) for split, table in found.items()}
    called = Path(name).name
    if len(made) == 1:
        return PairData(called, *three_parts(made["train"], val, test, seed))
    test_part = made.get("test", made.get("val", no_pairs("test")))
    return PairData(
        called, made["train"], made["val"] if "test" in made and "val" in made else no_pairs("val"), test_part
    )


def _pairs(name: str, table: Any, image: str, caption: str, split: str) -> Pairs:
    captions = [as_captions(cell) for cell in table[caption]]
    silent = [row for row, words in enumerate(captions) if not words]
    if silent:
        raise DataError(
            f"row {silent[0]} of {split} of {name} has no caption ({len(silent)} such rows): leave them out"
        )
    pictures = Pictures(TablePictures(table, image), torch.arange(len(table)), split=split)
    return pairs_of(pictures, captions)
