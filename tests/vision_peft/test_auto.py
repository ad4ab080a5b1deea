"""`vision_peft auto` on a tiny folder: what it leaves, that it goes on, its mistakes; and `fit --lr find`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from peft_core import PeftError, load_run
from peft_core.files import read_yaml
from peft_core.jobs.runs import rates
from vision_peft import job
from vision_peft.auto import auto
from vision_peft.fit import fit
from vision_peft.sweep import worker

CPU = {"accelerator": "cpu"}


def search(data: str, out: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = dict(methods=["linear"], recipes=["digits"], epochs=1, trainer=CPU)
    return auto(data=data, out=str(out), **(settings | changes))


@pytest.fixture(scope="module")
def searched(small_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("auto") / "run"
    search(small_data, out)
    return out


def test_a_search_ends_as_a_run_of_fit(searched: Path, small_data: str, tmp_path: Path) -> None:
    results = json.loads((searched / "results.json").read_text(encoding="utf-8"))
    found, config = results["search"], read_yaml(searched / "config.yaml")
    assert results["evaluated_on"] == "test" and results["pictures"]["train"] == 60  # train + val
    assert found["chosen"]["method"] == config["method"]["name"] and found["chosen"]["lr"] == config["lr"]
    assert [row["lr"] for row in found["tried"]] == [5e-3, 1.5e-2, 1.7e-3]
    assert "How the settings were chosen" in (searched / "report.html").read_text(encoding="utf-8")
    tried = [json.loads(path.read_text(encoding="utf-8")) for path in searched.glob("search/runs/**/results.json")]
    assert tried and {each["evaluated_on"] for each in tried} == {"val"}
    assert load_run(searched).class_names == ("one", "two", "zero")


def test_a_second_start_trains_nothing(
    searched: Path, small_data: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(job, "run", lambda *given, **more: 1 / 0)
    search(small_data, searched)
    assert "is finished already" in capsys.readouterr().out


def test_one_that_was_stopped_before_the_end_goes_on(
    searched: Path, small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again"
    shutil.copytree(searched / "search", out / "search")
    monkeypatch.setattr(worker, "carry_out", lambda *given: 1 / 0)
    assert search(small_data, out)["search"]["chosen"] == read_results(searched)["search"]["chosen"]
    assert (out / "adapter" / "adapter.safetensors").read_bytes() == (
        searched / "adapter" / "adapter.safetensors"
    ).read_bytes()


def read_results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"methods": ["lora"], "budget": "1k"},
            "--budget 1k fits no method: lora inserts 36,864, over the budget of 1,000",
        ),
        ({"time": "soon"}, "--time takes a span like 90s, 10m or 1h30m"),
        ({"methods": ["loar"]}, 'unknown method "loar", did you mean "lora"'),
    ],
)
def test_mistakes(small_data: str, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PeftError, match=sentence.replace("(", r"\(")):
        search(small_data, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_no_val_no_choice(small_data: str, tmp_path: Path) -> None:
    data: Any = {"name": f"{small_data}/train", "val": 0}
    with pytest.raises(PeftError, match="train has no val pictures to choose on"):
        search(data, tmp_path / "out")


def test_another_run_is_not_overwritten(small_run: Path, searched: Path, small_data: str) -> None:
    with pytest.raises(PeftError, match="holds a run that no search chose"):
        search(small_data, small_run)
    with pytest.raises(PeftError, match="holds another search .seed is 0 there, 1 here"):
        search(small_data, searched, seed=1)


def test_lr_find(small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(rates, "STEPS", 30)
    how: dict[str, Any] = dict(data=small_data, method="linear", recipe="digits", batch_size=20, epochs=1, trainer=CPU)
    fit(**how, lr="find", out=str(tmp_path / "found"))
    rate = read_yaml(tmp_path / "found" / "config.yaml")["lr"]
    assert f"learning rate {rate:g}" in capsys.readouterr().err and 1e-6 < rate < 1
    assert (tmp_path / "found" / "rates.png").read_bytes()[:4] == b"\x89PNG"
    assert "Learning rate" in (tmp_path / "found" / "report.html").read_text(encoding="utf-8")
    fit(**how, lr=rate, out=str(tmp_path / "given"))  # the search left no trace in the training
    one, other = (tmp_path / name / "adapter" / "adapter.safetensors" for name in ("found", "given"))
    assert one.read_bytes() == other.read_bytes()
    monkeypatch.setattr(job, "find_rate", lambda *given: 1 / 0)
    fit(**how, lr="find", out=str(tmp_path / "found"))  # finished, with the rate that was found
    assert "is finished already" in capsys.readouterr().out


def test_lr_find_needs_gradients(small_data: str, tmp_path: Path) -> None:
    with pytest.raises(PeftError, match="--lr find follows gradients"):
        fit(
            data=small_data,
            recipe="digits",
            epochs=1,
            trainer=CPU,
            optimizer="mezo",
            lr="find",
            out=str(tmp_path / "out"),
        )
