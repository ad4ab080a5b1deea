"""`vision_peft auto_peft`: its space, what it proposes, a search that goes on after it was stopped, and mistakes."""

import csv
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from peft_core import PeftError, adapt, count_parameters
from peft_core.files import write_files
from peft_core.jobs.sweep.outcome import Outcome
from vision_peft.auto_peft import run as searching
from vision_peft.auto_peft.command import auto_peft
from vision_peft.auto_peft.search import Configuration, Scored, Space, front, load_optuna, propose
from vision_peft.backbones import load_backbone
from vision_peft.commands import main as vision_peft

SPACE = Space(width=64, depth=6)


def test_the_space_is_that_of_the_paper() -> None:
    assert Space(768, 12).widths == [0, 1, 3, 6, 12, 24, 48, 96, 192, 384, 768]
    chance = Random(0)
    drawn = [SPACE.draw(chance) for _ in range(200)]
    assert not any(each.empty for each in drawn) and all(SPACE.of(SPACE.numbers(each)) == each for each in drawn)
    assert {width for each in drawn for width in each[:3]} == set(SPACE.widths)


def test_the_front_holds_what_nothing_as_small_beats() -> None:
    of = [Configuration(n, 0, 0, (True,)) for n in range(4)]
    scored = [Scored(of[0], 0.1, 0.5), Scored(of[1], 0.2, 0.4), Scored(of[2], 0.1, 0.3), Scored(of[3], 0.3, 0.9)]
    assert front(scored) == [scored[0], scored[3]]


def scored() -> list[Scored]:
    chance = Random(1)
    drawn = [SPACE.draw(chance) for _ in range(6)]
    return [Scored(each, (each.serial + each.parallel + 1) / 200, sum(each.layers) / 6) for each in drawn]


def test_what_is_proposed_is_new() -> None:
    pytest.importorskip("optuna")
    known = scored()
    drawn = {each.configuration for each in known}
    (new,) = propose(SPACE, known, drawn, 1, seed=3)
    assert new not in drawn and not new.empty


@pytest.mark.slow
def test_what_is_proposed_comes_out_the_same_again() -> None:
    pytest.importorskip("optuna")
    known, seen = scored(), {each.configuration for each in scored()}
    assert propose(SPACE, known, seen, 3, seed=3) == propose(SPACE, known, seen, 3, seed=3)


def search(small_data: str, backbone: str, out: Path, **changes: Any) -> dict[str, Any]:
    training = {"recipe": "digits", "batch_size": 24}
    settings = dict(runs=3, random=2, batch=1, training=training, trainer={"max_epochs": 1, "accelerator": "cpu"})
    return auto_peft(data=small_data, backbone=backbone, out=str(out), **(settings | changes))


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_goes_on_where_it_was_stopped(
    small_data: str, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ran, proposed = tmp_path / "search", list[dict](), list[int]()

    def trained(settings: dict, folder: Path, path: str, stamp: dict) -> Outcome:
        if len(ran) == 3 and not (out / "stopped").exists():
            (out / "stopped").touch()
            raise KeyboardInterrupt
        method = settings["method"]
        ran.append(method)
        inserted = 100 * len(method["blocks"]) * (method["serial"] + method["parallel"] + method["tokens"])
        count = {"inserted": inserted, "head": 10, "total": 100_010 + inserted}
        results = {"accuracy": len(ran) / 10, "parameters": count}
        write_files(folder / path, {"results.json": json.dumps(results).encode()})
        return Outcome(results=results)

    def proposal(space: Space, known: list[Scored], seen: set, count: int, seed: int) -> list[Configuration]:
        proposed.append(len(known))
        return [Configuration(1 + n, 2, len(seen) and 4, (True,) * 6) for n in range(count)]

    monkeypatch.setattr(searching.worker, "carry_out", trained)
    monkeypatch.setattr(searching, "load_optuna", lambda: None)
    monkeypatch.setattr(searching, "propose", proposal)
    with pytest.raises(KeyboardInterrupt):  # in the middle of what was proposed
        search(small_data, tiny_backbone, out, runs=4, batch=2)
    assert [row["accuracy"] != "" for row in table(out)] == [True, True, True, False]
    results = search(small_data, tiny_backbone, out, runs=4, batch=2)
    assert len(ran) == 4 and proposed == [2] and results["runs"] == 4 and not results["failed"]
    rows = table(out)
    assert [row["origin"] for row in rows] == ["random"] * 2 + ["search"] * 2
    assert results["accuracy"] == 0.4 and sum(int(row["front"]) for row in rows) == results["front"]
    assert (out / "front.png").read_bytes()[:4] == b"\x89PNG" and "Front" in (out / "report.html").read_text("utf-8")
    chosen = yaml.safe_load((out / "chosen.yaml").read_text("utf-8"))
    assert chosen == results["chosen"] == {"method": "auto_peft"} | {k: v for k, v in ran[3].items() if k != "name"}
    assert search(small_data, tiny_backbone, out, runs=4, batch=2) == results and len(ran) == 4  # all is there


@pytest.mark.slow
def test_a_search_trains_what_it_proposes(small_data: str, tiny_backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    results = search(small_data, tiny_backbone, tmp_path / "search")
    assert results["runs"] == 3 and all(
        0 < float(row["share"]) and row["accuracy"] for row in table(tmp_path / "search")
    )
    model, _ = load_backbone(tiny_backbone, 3)
    inserted = count_parameters(adapt(model, str(tmp_path / "search" / "chosen.yaml"), reparameterize=False)).inserted
    assert results["share"] == pytest.approx(
        inserted / sum(p.numel() for p in load_backbone(tiny_backbone, 0)[0].parameters())
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"random": 9}, "of 3 runs 9 cannot be random"), ({"data": "digits", "trainer": {"devices": 2}}, "one device")],
)
def test_mistakes_are_told(small_data: str, tiny_backbone: str, tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(PeftError, match=sentence):
        search(changes.pop("data", small_data), tiny_backbone, tmp_path / "none", **changes)


def test_help_names_its_options_and_a_missing_library_is_told(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vision_peft(["auto_peft", "--help"]) == 0
    assert "--training.lr" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PeftError, match="pip install 'visual-peft"):
        load_optuna()
