"""`clip_peft auto` on a tiny model and folder, and `fit --lr find`."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip_peft import candidates
from clip_peft.auto import auto
from clip_peft.fit import fit
from peft_core import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.runs import rates

CPU = {"accelerator": "cpu"}


def test_methods_and_rates_are_chosen_on_val(
    backbone: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    how: dict[str, Any] = dict(
        data=photos, backbone=backbone, shots=2, trainer=CPU, epochs=1, out=str(tmp_path / "run")
    )
    monkeypatch.setattr(candidates, "RATES", (1.0, 3.0))
    results = auto(**how, methods=["taskres", "clip_adapter"], budget="100")
    found, config = results["search"], read_yaml(tmp_path / "run" / "config.yaml")
    refused, *tried = found["tried"]
    assert refused["method"] == "clip_adapter" and "over the budget of 100" in refused["note"]
    assert [(row["recipe"], row["lr"]) for row in tried] == [("taskres", 2e-3), ("taskres", 6e-3)]
    assert (
        config["lr"] == found["chosen"]["lr"]
        and results["evaluated_on"] == "test"
        and results["parameters"]["inserted"] <= 100
    )
    each = [
        json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "run").glob("search/runs/**/results.json")
    ]
    assert len(each) == 2 and {one["evaluated_on"] for one in each} == {"val"}
    capsys.readouterr()
    assert auto(**how, methods=["taskres", "clip_adapter"], budget="100")["accuracy"] == results["accuracy"]
    assert "is finished already" in capsys.readouterr().out


def test_a_cache_is_counted_before_it_is_filled(backbone: str, photos: str, tmp_path: Path) -> None:
    how: dict[str, Any] = dict(data=photos, backbone=backbone, shots=2, trainer=CPU, out=str(tmp_path / "run"))
    with pytest.raises(
        PeftError, match="--budget 100 fits no method: tip_adapter_f inserts 192, over the budget of 100"
    ):
        auto(**how, methods=["tip_adapter_f"], budget="100")  # two keys of width 16 for each of six classes


def test_lr_find(backbone: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "STEPS", 60)
    how: dict[str, Any] = dict(
        data=photos, backbone=backbone, shots=4, epochs=1, batch_size=8, cache_views=2, trainer=CPU, lr="find"
    )
    with pytest.raises(PeftError, match="zero_shot trains nothing, so there is no rate to find"):
        fit(**how, method="zero_shot", out=str(tmp_path / "zero"))
    fit(**how, method="linear_probe", out=str(tmp_path / "run"))
    assert 1e-6 < read_yaml(tmp_path / "run" / "config.yaml")["lr"] < 10 and (tmp_path / "run" / "rates.png").is_file()
