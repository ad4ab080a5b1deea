"""The page of every program: what it does, without a browser; its parts, with Gradio."""

import builtins
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from diffusion_peft.commands.app import PART as DIFFUSION
from diffusion_peft.commands.app import use as draw
from peft_core import PeftError
from peft_core.jobs.app import frame
from peft_core.jobs.app.frame import Page, needs_gradio, serve
from peft_core.jobs.app.parts import Field, Part, Shown, predictions
from peft_core.jobs.app.runs import Training, about, curve, finished
from vision_peft.app import PART as VISION
from vision_peft.commands import main

FIT = """import sys, time
print(*sys.argv[1:])
print("epoch 1/2  loss 0.5")
if "fails" in sys.argv[3]: print("program: a sentence."); sys.exit(2)
while "waits" in sys.argv[3]: time.sleep(0.05)
"""
FIELDS = (
    Field("data", "Data", "photos"),
    Field("method", "Method", "lora", ("lora", "ssf")),
    Field("lr", "Rate", number=True),
)


def use(run: Any, pictures: Sequence[str], given: Mapping[str, Any]) -> Shown:
    return Shown([(each, given["top"]) for each in pictures], ["picture"], [[run]])


PART = Part("vision_peft", "fake_fit", "About.", True, "Predict", use, (Field("top", "Top", 3, number=True),), FIELDS)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A page whose `fit` is a few lines."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/fake_fit.py").write_text(FIT, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    made = Page(PART, tmp_path / "runs")
    yield made
    made.training.stop()


def write(folder: Path, program: str = "vision_peft", **results: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"command": f"{program} fit"}), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def over(training: Training) -> str:
    until = time.monotonic() + 60
    while training.state() == "training" and time.monotonic() < until:
        time.sleep(0.02)
    return training.state()


class Told:
    """A run of two columns: what it says of a picture is the picture's name."""

    columns = ("label", "probability")

    def ready(self, path: str) -> str:
        if "no" in path:
            raise PeftError(f"{path} is no picture.")
        return path

    def stream(self, ready: Sequence[str]) -> Sequence[str]:
        return ready

    def cells(self, said: str, top: int) -> list[tuple[str, ...]]:
        return [(said, "0.256"), ("", "")][:top]


def test_predictions_are_told_in_the_runs_own_columns() -> None:
    shown = predictions(Told(), ["a/b.png", "no.png"], 2)
    assert shown.pictures == [("a/b.png", "a/b.png 26 %")] and shown.columns == ["picture", "label", "probability"]
    assert shown.rows == [["b.png", "a/b.png", "25.6 %"], ["b.png", "", ""], ["", "no.png is no picture.", ""]]
    with pytest.raises(PeftError, match="no picture"):
        predictions(Told(), ["no.png"], 1)


def test_finished_runs_of_the_program_are_found_and_told(tmp_path: Path) -> None:
    assert finished(tmp_path / "none", "vision_peft") == []
    (tmp_path / "begun").mkdir()
    write(
        tmp_path / "קטה 1",
        method={"name": "lora", "rank": 4},
        accuracy=0.5,
        interval=[0.4, 0.6],
        evaluated_on="test",
        remarks=["look"],
    )
    write(tmp_path / "other", "clip_peft")
    write(tmp_path / "unknown", "some_program")
    assert finished(tmp_path, "vision_peft") == ["קטה 1"]
    assert about(tmp_path / "קטה 1") == "lora · accuracy 50.0 % (40 to 60 % with 95 % confidence) on test\n\n- look"


def test_a_training_is_started_watched_and_stopped(page: Page) -> None:
    assert page.watch()[0] == "Nothing is training."
    assert page.start("first", "my photos", "ssf", 0.005) == (
        f"vision_peft fit --out {page.root}/first --data 'my photos' --method ssf --lr 0.005"
    )
    assert over(page.training) == "done"
    words, said, what, points, report = page.watch()
    assert words == "Done." and "--data my photos" in said and (what, points, report) == ("epoch", [(1.0, 0.5)], None)
    page.start("fails", "photos", "", None)
    assert (
        over(page.training) == "failed" and page.watch()[1].endswith("a sentence.\n") and "--lr" not in page.watch()[1]
    )
    page.start("waits", "photos", "lora", 20.0)
    with pytest.raises(PeftError, match="still training: stop it first"):
        page.start("second", "photos", "lora", None)
    page.training.stop()
    assert over(page.training) == "stopped"


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "a\\b", "a\0b"])
def test_a_run_has_the_name_of_a_folder(page: Page, name: str) -> None:
    with pytest.raises(PeftError, match="becomes a folder"):
        page.start(name, "photos", "lora", None)


def test_runs_are_used_and_mistakes_told(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.loaded, "get", lambda folder: folder.name)
    assert page.use("one", ["a.png"], 2) == ([("a.png", 2)], {"headers": ["picture"], "data": [["one"]]})
    for name, pictures, sentence in (("one", None, "drop a picture first"), (None, ["a.png"], "no finished run")):
        with pytest.raises(PeftError, match=sentence):
            page.use(name, pictures, 2)


def test_a_loaded_run_is_kept_until_its_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft_core.jobs.app import runs

    write(tmp_path / "a")
    calls: list[str] = []
    monkeypatch.setattr(runs, "load_run", lambda folder, programs: calls.append(folder.name) or len(calls))
    loaded = runs.Loaded("vision_peft")
    assert [loaded.get(tmp_path / "a") for _ in range(2)] == [1, 1]
    (tmp_path / "a/results.json").touch()
    os.utime(tmp_path / "a/results.json", (1, 1))
    assert loaded.get(tmp_path / "a") == 2


def test_curves_are_read_from_what_a_training_says() -> None:
    said = "steps      64\nstep 32/64  epoch 4/8  loss 0.5000  3 s left\nepoch 8/8  loss 0.2500  val accuracy 0.9\n"
    assert curve(said) == ("epoch", [(4.0, 0.5), (8.0, 0.25)])
    assert curve("step 5/10  loss 0.1\nstep 10/10  loss 0.2\n") == ("step", [(5.0, 0.1), (10.0, 0.2)])
    assert curve("") == ("step", [])


def test_a_diffusion_run_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    run = SimpleNamespace(controls=[], sample=lambda *how, **more: asked.append((how, more)) or [["picture"] * how[1]])
    given = {"prompt": "a sks thing", "count": 2, "seed": 3, "steps": 5, "guidance": 4}
    shown = draw(run, [], given)
    assert shown.pictures == [("picture", "seed 3"), ("picture", "seed 4")] and asked[0][0] == ("a sks thing", 2, 3)
    for wrong in ({"prompt": " "}, {"count": 0}, {"count": 99}, {"steps": 0}, {"seed": -1}):
        with pytest.raises(PeftError, match="write a prompt|draw 1 to"):
            draw(run, [], given | wrong)


def test_the_pages_are_built_of_fields_that_fit_takes(page: Page) -> None:
    from clip_peft.app import PART as CLIP
    from clip_peft.fit import fit as clip
    from diffusion_peft.commands.fit import fit as diffusion
    from vision_peft.fit import fit as vision

    for part, fit in ((VISION, vision), (CLIP, clip), (DIFFUSION, diffusion)):
        assert {field.option for field in part.fit_fields} <= fit.parameters.keys()
        built = frame.build(Page(part, page.root))
        ids = {block.elem_id for block in built.blocks.values()}
        assert {"run", "use", "result", "train", "curve"} <= ids
        assert {f"field-{each.option}" for each in (*part.fit_fields, *part.use_fields)} <= ids
    with pytest.raises(needs_gradio().Error, match="drop a picture first"):
        frame.told(page.use)("one", [], 2)


def test_without_gradio_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    real = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["app", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "vision_peft: app needs the package gradio: pip install 'visual-peft[app]'.\n"
    (tmp_path / "file").touch()
    with pytest.raises(PeftError, match="is a file: give --runs a folder"):
        serve(VISION, str(tmp_path / "file"), 7860, False)
