"""From things in pictures to labels of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from peft_data.annotations.base import Annotated, split_up
from peft_data.base import ClassificationData
from peft_data.findings import with_findings
from peft_data.splits import check_shares
from peft_data.targets import MultiLabelData


def presence(
    name: str, root: Path, parts: Mapping[str, Annotated], classes: tuple[str, ...], val: float, test: float, seed: int
) -> ClassificationData:
    """1 what a picture has a thing of, -1 where all of them are hard, else 0."""
    check_shares(val, test)
    labels = {}
    for split, part in parts.items():
        rows = []
        for things, hard in zip(part.things, part.hard, strict=True):
            clear = {thing for thing, odd in zip(things, hard.tolist(), strict=True) if not odd}
            rows.append([1 if each in clear else -1 if each in things else 0 for each in classes])
        labels[split] = rows
    three, drawn, notes = split_up(parts, labels, torch.int8, root, val, test, seed)
    return with_findings(MultiLabelData(Path(name).stem, classes, *three), notes, drawn=drawn)
