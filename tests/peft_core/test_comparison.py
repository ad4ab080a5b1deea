"""`compare` of every classifier's program: finished runs side by side."""

import json
from pathlib import Path

import pytest
import yaml

from clip_peft.commands import main as clip
from peft_core.jobs.reports import comparison
from vision_peft.commands import main as vision

PROGRAMS = {"vision_peft": vision, "clip_peft": clip}
OF = {
    "vision_peft": {"protocol": "honest", "parameters": {"inserted": 36_864, "head": 10, "total": 368_640}},
    "clip_peft": {"classes": "base", "shots": 16, "zero_shot_accuracy": 0.25, "ece": 0.125, "parameters": {"trainable": 2_048}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison.plots, "scatter", lambda points, x, y: f"{points} {x}".encode())


def write(folder: Path, program: str, **other: object) -> None:
    results = OF[program] | {"data": "photos", "evaluated_on": "test", "backbone": "reference", "accuracy": 0.5, "seed": 0,
               "method": {"name": "lora", "rank": 4}, "seconds": {"train": 7.4}} | other  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"command": f"{program} fit"}), encoding="utf-8")


@pytest.mark.parametrize("program", PROGRAMS)
def test_runs_stand_side_by_side_and_seeds_share_a_row(program: str, tmp_path: Path, capsys) -> None:
    write(tmp_path / "runs/a", program)
    write(tmp_path / "runs/b", program, seed=1, accuracy=0.7)
    write(tmp_path / "runs/c", program, method={"name": "linear"}, accuracy=0.9)
    write(tmp_path / "runs/other", next(each for each in PROGRAMS if each != program))
    (tmp_path / "runs/begun").mkdir()
    assert PROGRAMS[program](["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "table")]) == 0
    table = (tmp_path / "table/compare.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| l")]
    assert rows[0].startswith("| linear | 90.0 % | 1 |") and rows[1].startswith("| lora (rank 4) | 60.0 % ± 14.1 | 2 |")
    own = {"vision_peft": "| 36,864 | 10 | 10.00 % | 7 s |", "clip_peft": "| 16 | 25.0 % | 0.1250 | 2,048 | 7 s |"}
    assert rows[1].endswith(own[program]) and table.strip() in capsys.readouterr().out
    assert b"('linear'" in (tmp_path / "table/compare.png").read_bytes()


def test_shots_keep_runs_apart_and_base_and_new_classes_have_tables_of_their_own(tmp_path: Path, capsys) -> None:
    write(tmp_path / "a", "clip_peft")
    write(tmp_path / "b", "clip_peft", shots=0, zero_shot_accuracy=None)
    assert clip(["compare", str(tmp_path)]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| lora")]) == 2
    write(tmp_path / "c", "clip_peft", classes="new")
    assert clip(["compare", str(tmp_path), "--out", str(tmp_path / "table")]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("photos, ")]
    assert [line.split(", ")[1] for line in titles] == ["base classes", "new classes"]
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"compare.md", "compare-1.png", "compare-2.png"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_has_no_row_is_left_out_of_a_folder_and_refused_by_name(program: str, tmp_path: Path, capsys) -> None:
    write(tmp_path / "runs/a", program)
    write(tmp_path / "runs/b", program, accuracy=None)
    assert PROGRAMS[program](["compare", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "| lora (rank 4) | 50.0 % | 1 |" in said and said.endswith(
        "b was not scored, so there is nothing to compare.\n"
    )
    assert PROGRAMS[program](["compare", str(tmp_path / "runs/a"), str(tmp_path / "runs/b")]) == 2


def test_a_run_of_pairs_has_no_place_beside_classifiers(tmp_path: Path, capsys) -> None:
    write(tmp_path / "pairs", "clip_peft", before={}, after={})
    assert clip(["compare", str(tmp_path)]) == 2
    assert "pairs is a run of pairs, scored by retrieval" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_cannot_be_compared_is_told(program: str, tmp_path: Path, capsys) -> None:
    main, other = PROGRAMS[program], next(each for each in PROGRAMS if each != program)
    write(tmp_path / "unscored", program, accuracy=None)
    write(tmp_path / "damaged", program, seconds=0)
    (tmp_path / "damaged/results.json").write_text('{"data": "photos"}', encoding="utf-8")
    write(tmp_path / "other", other)
    write(tmp_path / "good", program)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for words, sentence in (
        (["none"], "there is no folder none"), ([str(tmp_path / "empty")], "holds a finished run"),
        ([str(tmp_path / "unscored")], "was not scored"), ([str(tmp_path / "damaged")], "is damaged: it has no"),
        ([str(tmp_path / "other")], f"is a run of {other}"), (["--out", str(tmp_path)], "compare needs runs"),
        ([str(tmp_path / "good"), "--out", str(tmp_path / "file")], "is a file"),
    ):  # fmt: skip
        assert main(["compare", *words]) == 2
        said = capsys.readouterr()
        assert sentence in said.err and len(said.err.splitlines()) == 1 and not said.out, said
