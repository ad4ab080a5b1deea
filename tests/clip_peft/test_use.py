"""A finished run in use: other classes, other pictures, the command line."""

import csv
import io
import shutil
from pathlib import Path

import pytest
import torch

from clip_peft.commands import main
from clip_peft.fit import fit
from clip_peft.use import test as score
from peft_core import PeftError, load_run
from tests.clip_peft.conftest import SHORT


@pytest.fixture(scope="module")
def probe_run(backbone: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "probe"
    fit(data=photos, backbone=backbone, method="linear_probe", out=str(out), **SHORT)
    return out


def test_base_new_and_all(coop_run: Path, capsys: pytest.CaptureFixture) -> None:
    found = {which: score(run=str(coop_run), classes=which) for which in ("trained", "base", "new", "all")}
    assert found["trained"] == found["base"]
    assert list(found["new"]["per_class"]) == ["grey", "red", "white"] and found["new"]["pictures"] == 12
    assert len(found["all"]["per_class"]) == 6 and found["all"]["pictures"] == 24
    out = capsys.readouterr().out
    assert (
        "12 pictures of colours test (new classes, 3 names)" in out and "24 pictures of colours test (6 names)" in out
    )


def test_a_method_of_its_classes_takes_some_of_them(coop_run: Path, probe_run: Path) -> None:
    base = score(run=str(probe_run), classes="base")
    assert list(base["per_class"]) == ["black", "blue", "green"]
    run = load_run(probe_run)
    part = run.with_classes(["red", "blue"])
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    (whole,), (two,) = run.predict(pixels), part.predict(pixels)
    chosen = whole.probabilities[[run.class_names.index(name) for name in ("red", "blue")]]
    torch.testing.assert_close(two.probabilities, chosen / chosen.sum())
    with pytest.raises(PeftError, match="linear_probe cannot name other classes, because each class has learnt"):
        run.with_classes(["red", "pink"])


def test_another_data_set_with_classes_of_its_own(coop_run: Path, photos: str, tmp_path: Path) -> None:
    for name in ("red", "white"):
        for split in ("train", "test"):
            shutil.copytree(Path(photos) / split / name, tmp_path / "two" / split / f"{name} thing")
    found = score(run=str(coop_run), data=str(tmp_path / "two"))
    assert list(found["per_class"]) == ["red thing", "white thing"] and found["pictures"] == 8


def test_predict_any_names(coop_run: Path, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = f"{photos}/test/red/0.png"
    line = ["predict", "--run", str(coop_run), picture, "--classes", "a red ring", "a striped cube", "grass"]
    assert main([*line, "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2 and {row["path"] for row in rows} == {picture}
    assert {row["class"] for row in rows} <= {"a red ring", "a striped cube", "grass"}
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])
    assert main(["predict", "--run", str(coop_run), f"{photos}/test/red"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4 * 3 and sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1, abs=1e-3)
    (tmp_path / "bad.png").write_text("no picture")
    assert main(["predict", "--run", str(coop_run), str(tmp_path / "bad.png"), picture]) == 2
    said = capsys.readouterr()
    assert "bad.png is no picture that can be read" in said.err and picture in said.out


def test_finished_runs_are_left_alone_and_configs_run_again(
    coop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in coop_run.rglob("*")}
    assert main(["fit", "--config", str(coop_run)]) == 0
    assert "is finished already: accuracy" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in coop_run.rglob("*")} == before
    assert main(["fit", "--config", str(coop_run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    for name in ("adapter/adapter.safetensors", "predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (coop_run / name).read_bytes()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("methods", "coop"),
        ("methods", "clip_lora"),
        ("recipes", "cocoop"),
        ("data", "coop/oxford_pets"),
        ("protocols", "base_to_new"),
        ("sweeps", "world_open"),
        ("backbones", "ViT-B-16/openai"),
    ],
)
def test_lists(what: str, says: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", what]) == 0
    assert any(line.split()[:1] == [says] for line in capsys.readouterr().out.splitlines())


def test_help_names_every_option(capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "--help", "all", "--method", "kgcoop"]) == 0
    out = capsys.readouterr().out
    assert "--cache_views" in out and "--method.weight" in out and "--trainer.max_epochs" in out


def test_the_page_predicts_its_own_names_and_others(coop_run: Path, photos: str) -> None:
    from clip_peft.app import PART
    from peft_core.jobs.app.frame import Page

    page, picture = Page(PART, coop_run.parent), str(next(Path(photos).glob("test/red/*.png")))
    _, table = page.use(coop_run.name, [picture], "red thing, a blue thing", 5)
    assert sorted(row[1] for row in table["data"]) == ["a blue thing", "red thing"]
    _, table = page.use(coop_run.name, [picture], "", 5)
    assert sorted(row[1] for row in table["data"]) == ["black", "blue", "green"]
    with pytest.raises(PeftError, match="is there twice"):
        page.use(coop_run.name, [picture], "red, red", 5)
