"""Pairs of source and target: the layouts that there are, and what is wrong with them in one sentence."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_data import DataError
from peft_data.world.captioned import COLOURS, LABELS, SHAPES
from peft_data.world.edits import draw_edits
from PIL import Image

import datasets
from diffusion_peft.data.examples import Example
from diffusion_peft.data.latents import Captions, Latent
from diffusion_peft.editing.data import open_edits
from diffusion_peft.editing.examples import Edits
from diffusion_peft.editing.options import EditOptions, looks_paired
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import draw_pictures
from tests.diffusion_peft.test_editing import make_pairs


def options(**given: Any) -> dict[str, Any]:
    return EditOptions("", given).all()


def said(data: Any, prompt: str | None = None, **given: Any) -> str:
    with pytest.raises(PeftError) as error:
        open_edits(str(data), options(**given), prompt)
    assert str(error.value).count("\n") == 0 or "\n  " in str(error.value)
    return str(error.value)


def test_two_folders(tmp_path: Path) -> None:
    folder = make_pairs(tmp_path)
    assert looks_paired(str(folder)) and not looks_paired(str(folder / "source"))
    edits = open_edits(str(folder), options())
    assert [edit.target.caption for edit in edits] == ["make it 0", "make it 1", "make it 2"]
    assert (
        edits[1].source.source == folder / "source" / "1.png" and edits[1].target.source == folder / "target" / "1.png"
    )
    assert {edit.target.caption for edit in open_edits(str(folder), options(), "brighter")} == {"brighter"}
    (folder / "instructions" / "1.txt").unlink()
    assert "1 of 3 pairs" in (message := said(folder)) and "have no instruction (the first is 1)" in message
    (folder / "source" / "0.png").unlink()
    (folder / "target" / "2.png").unlink()
    message = said(folder, "brighter")
    assert "2 pairs" in message and "source/2.png has no target" in message and "target/0.png has no source" in message
    assert "has no source/" in said(folder / "source")
    assert "there is no folder" in said(tmp_path / "nowhere")


def test_sizes_that_differ_and_broken_pictures(tmp_path: Path) -> None:
    folder = make_pairs(tmp_path)
    Image.new("RGB", (16, 16)).save(folder / "target" / "0.png")  # larger, of the same shape
    assert len(open_edits(str(folder), options())) == 3
    Image.new("RGB", (16, 8)).save(folder / "target" / "0.png")
    assert "0: the source is 8 × 8, its target 16 × 8" in said(folder)
    (folder / "source" / "1.png").write_bytes(b"no picture")
    assert "1 pairs cannot be read" in said(folder)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_tables(form: str, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "all", [(8, 8)] * 4)
    rows = [
        {"input_image_file_name": "all/0.png", "edited_image_file_name": "all/1.png", "edit_prompt": "redder, and more"},
        {"input_image_file_name": "all/2.png", "edited_image_file_name": "all/3.png", "edit_prompt": "bluer"},
    ]  # fmt: skip
    file = tmp_path / f"metadata.{form}"

    def write() -> None:
        with file.open("w", encoding="utf-8", newline="") as out:
            if form == "jsonl":
                out.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                table = csv.DictWriter(out, [*rows[0]])
                table.writeheader()
                table.writerows(rows)

    write()
    for place in (tmp_path, file):
        assert looks_paired(str(place))
        edits = open_edits(str(place), options())
        assert [edit.target.caption for edit in edits] == ["redder, and more", "bluer"]
        assert edits[1].source.source == tmp_path / "all" / "2.png"
    assert 'has no column "before"' in said(tmp_path, source_column="before")
    rows[1]["edited_image_file_name"] = "all/9.png"
    rows[0]["input_image_file_name"] = ""
    write()
    message = said(tmp_path)
    assert "2 pairs" in message and "names all/9.png, which is not there" in message and "names no source" in message
    rows[:] = [{"before": "all/0.png", "after": "all/1.png", "text": "redder"}]
    write()
    assert not looks_paired(str(tmp_path))
    assert "say with --edit.source_column which of them is meant" in said(tmp_path)
    (edit,) = open_edits(str(tmp_path), options(source_column="before", target_column="after"))
    assert edit.target.caption == "redder"
    if form == "csv":
        file.write_text("before,after,text\nall/0.png,all/1.png,redder, and more\n", encoding="utf-8")
        assert "has more values than columns: put words with commas in quotes" in said(tmp_path)


def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(4)]
    columns = {"input_image": pictures[:2], "edited_image": pictures[2:], "edit_prompt": ["redder", "bluer"]}
    features = datasets.Features(
        input_image=datasets.Image(), edited_image=datasets.Image(), edit_prompt=datasets.Value("string")
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "set")
    edits = open_edits(f"hf/{tmp_path / 'set'}", options())
    assert [edit.target.caption for edit in edits] == ["redder", "bluer"]
    assert np.array_equal(np.asarray(edits[1].source.read()), np.asarray(pictures[1]))
    assert 'has no column "words"' in said(f"hf/{tmp_path / 'set'}", instruction_column="words")


def test_what_is_dropped() -> None:
    """With u uniform: the instruction where u < 2 p, the source where p ≤ u < 3 p, so p of each and p of both."""
    latent = Latent(torch.zeros(4, 2, 2), torch.zeros(4, 2, 2), (2, 2, 0, 0, 2, 2))
    captions = Captions(["", "it"], rows=[{"hidden": torch.zeros(3, 5)}, {"hidden": torch.ones(3, 5)}])
    edits = Edits([Example(latent, (1,))] * 400, captions, sources=[torch.ones(4, 2, 2)] * 400, drop=0.2)
    batch = edits.batch(range(400), torch.Generator().manual_seed(0))
    u = torch.rand(400, generator=torch.Generator().manual_seed(0))
    said, seen = batch["hidden"].mean((1, 2)), batch["source"].mean((1, 2, 3))
    assert torch.equal(said == 0, u < 0.4) and torch.equal(seen == 0, (u >= 0.2) & (u < 0.6))
    assert {*said.tolist(), *seen.tolist()} == {0.0, 1.0}


def test_the_drawn_world() -> None:
    """Nothing but the thing's colour changes, to the one that is named."""
    drawn = draw_edits("world/edit/colour", 12, "test")
    assert drawn.sources.shape == drawn.targets.shape == (12, 3, 64, 64) and len(drawn.instructions) == 12
    changed = (drawn.sources != drawn.targets).any(1)
    assert changed.flatten(1).any(1).all() and changed.float().mean() < 0.6
    for text, target, where, row in zip(drawn.instructions, drawn.targets, changed, drawn.labels, strict=True):
        colour = tuple(COLOURS)[row[tuple(LABELS).index("colour")]]
        assert text == f"make the {SHAPES[row[0]]} {colour}"
        near = (target / 255 - torch.tensor(COLOURS[colour]).view(3, 1, 1)).abs().amax(0)
        assert bool((near[where] < 0.35).any())
    fewer = draw_edits("world/edit/colour", 3, "test")
    assert torch.equal(fewer.sources, drawn.sources[:3])
    assert looks_paired("world/edit/colour") and not looks_paired("world/subjects/0")
    with pytest.raises(DataError, match="there is no 'world/edit/size' in the drawn world"):
        draw_edits("world/edit/size", 1)
