"""Protocols: what they train and score, the table, and going on."""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from clip_peft.commands import main
from clip_peft.fit import fit
from clip_peft.sweep import elevater
from clip_peft.sweep.command import PLANNED, own_settings, settings_of, sweep
from clip_peft.sweep.elevater import searched
from clip_peft.sweep.protocols import Trial, averages, cell, harmonic, seeds_of, table, trials
from clip_peft.sweep.rates import Tried, at_rates, best, candidates, ordered
from peft_core import PeftError
from peft_core.jobs.sweep.preset import planned

SET = [
    "epochs=1",
    "batch_size=8",
    "cache_views=1",
    "steps_per_shot=0",
    "coop:method.context=2",
    "trainer.accelerator=cpu",
]


def csv_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def command_of(protocol: str, data: str, out: Path, *words: str) -> list[str]:
    return ["sweep", "--protocol", protocol, "--data", data, "--out", str(out), *words]


def row(method: str, column: str, accuracy: float | None, data: str = "a", seed: int = 1, shots: int = 16) -> dict:
    return {"data": data, "method": method, "shots": shots, "seed": seed, "column": column, "accuracy": accuracy}


def test_h_is_of_the_averages() -> None:
    rows = [
        row("coop", "base", 0.8),
        row("coop", "new", 0.6),
        row("coop", "base", 0.9, "b"),
        row("coop", "new", 0.4, "b"),
    ]
    rows += [row("taskres", column, value, data) for data in "ab" for column, value in (("base", 0.9), ("new", None))]
    means = averages("base_to_new", rows)
    assert means["mean base"]["coop"] == pytest.approx(0.85) and means["mean new"]["coop"] == pytest.approx(0.5)
    assert (
        means["H of means"]["coop"] == pytest.approx(2 * 0.85 * 0.5 / 1.35) and means["H of means"]["taskres"] is None
    )
    header, lines = table("base_to_new", rows)
    assert header == "method|a base|a new|a H|b base|b new|b H|mean base|mean new|H of means".split("|")
    assert lines[0] == "coop 80.00 60.00 68.57 90.00 40.00 55.38 85.00 50.00 62.96".split()
    assert lines[1] == "taskres 90.00 – – 90.00 – – 90.00 – –".split()
    assert harmonic(0.8069, 0.6322) == pytest.approx(0.7089, abs=1e-4) and harmonic(0.5, None) is None


def test_published_h_of_averages() -> None:
    published = {"CLIP": (69.34, 74.22, 71.70), "CoOp": (82.69, 63.22, 71.66), "MaPLe": (82.28, 75.14, 78.55)}
    for base, new, h in published.values():
        assert harmonic(base, new) == pytest.approx(h, abs=0.005)


def test_cells() -> None:
    assert cell([0.5, 0.6, 0.7]) == "60.00 ± 10.00" and cell([0.5]) == "50.00" and cell([0.5, None]) == cell([]) == "–"


def test_what_protocols_train_and_score() -> None:
    (one,) = trials("base_to_new", ["d"], [], ["coop"], [1], [])
    assert one == Trial("d", "coop", 16, 1, "base", (("base", None, "base"), ("new", None, "new")))
    assert [t.shots for t in trials("few_shot", ["d"], [], ["coop"], [1], [])] == [1, 2, 4, 8, 16]
    (one,) = trials("all_classes", ["d"], [], ["coop"], [1], [4])
    assert (one.classes, one.shots, one.scored) == ("base", 4, (("all", None, "all"),))
    (one,) = trials("domain_generalisation", ["coop/imagenet"], [], ["coop"], [1], [])
    assert [column for column, _, _ in one.scored][:3] == ["source", "coop/imagenetv2", "coop/imagenet_sketch"]
    (one,) = trials("cross_dataset", ["coop/imagenet"], [], ["coop"], [1], [])
    assert len(one.scored) == 11
    natural = list(trials("imbalanced", ["d"], [], ["gda"], [1], []))
    assert [t.shots for t in natural] == [1, 2, 4, 8, 16]
    settings = settings_of(natural[0], Path("x"), (), "reference")
    assert (settings["choose_on"], settings["spread"]) == ("train", "natural")
    grafted, beside = trials("elevater", ["d"], [], ["kadaptation", "taskres"], seeds_of("elevater")[:1], [])
    assert (grafted.shots, grafted.seed) == (5, 0) and not beside.options
    settings = settings_of(grafted, Path("x"), [("method.rank", "2")], "reference")
    assert settings["method"] == {"name": "kadaptation", "tower": "image", "rank": "2"}
    with pytest.raises(PeftError, match="cross_dataset trains on one data set, not 2"):
        list(trials("cross_dataset", ["a", "b"], [], ["coop"], [1], []))
    with pytest.raises(PeftError, match="cross_dataset from a needs --targets"):
        list(trials("cross_dataset", ["a"], [], ["coop"], [1], []))
    with pytest.raises(PeftError, match="few_shot scores the data sets that it trains on"):
        list(trials("few_shot", ["a"], ["b"], ["coop"], [1], []))


def test_elevater_climbs_to_the_best_decay_of_each_rate() -> None:
    (trial,) = trials("elevater", ["d"], [], ["taskres"], [0], [])
    asked: list[Trial] = []

    def run(some: Sequence[Trial]) -> dict[Trial, float | None]:
        """Best at a rate of 1e-3 and a decay of 10^(-6 + 37/8); every run at 1e-1 fails."""
        asked.extend(some)
        found = {}
        for one in some:
            own = dict(one.options)
            lr, place = math.log10(float(own["lr"])), round(8 * (math.log10(float(own["weight_decay"])) + 6))
            assert own["hold_out"] == "0.2" and own["eval_on"] == "val" and own["epochs"] == "10"
            found[one] = None if lr > -1.5 else 1 / (1 + abs(lr + 3) + abs(place - 37) / 97)
        return found

    ((_, better),) = searched([trial], run)
    own = dict(better.options)
    assert own["lr"] == "0.001" and math.log10(float(own["weight_decay"])) == pytest.approx(-6 + 37 / 8, abs=1e-5)
    assert own["epochs"] == "50" and "hold_out" not in own and better.scored == trial.scored
    assert len(asked) == len(set(asked)) <= 6 * 15
    settings = settings_of(asked[0], Path("x"), [("epochs", "1"), ("lr", "7")], "reference")
    assert (settings["epochs"], settings["lr"], settings["hold_out"]) == ("1", "1e-06", "0.2")


@pytest.mark.slow
def test_a_search_trains_what_it_found(
    photos: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(elevater, "RATES", (2e-3,))
    monkeypatch.setattr(elevater, "DECAYS", elevater.DECAYS[:17])
    monkeypatch.setattr(elevater, "SPANS", ())
    line = command_of("elevater", photos, tmp_path / "out", "--methods", "taskres", "zero_shot", "--seeds", "0")
    own = [word for word in SET if not word.startswith("coop:")]
    assert main([*line, "--search", "true", "--backbone", backbone, "--workers", "1", "--set", *own]) == 0
    said = capsys.readouterr()
    rows = csv_rows(tmp_path / "out/results.csv")
    assert [row["method"] for row in rows] == ["taskres", "zero_shot"] and rows[0]["lr"] == "0.002"
    runs = [path.name for path in (tmp_path / "out/runs").rglob("5shots*") if path.is_dir()]
    assert len([name for name in runs if "hold_out0.2" in name]) == 3 and len(runs) == 5  # of zero_shot the first alone
    assert "[search, 3," in said.err and "2 of 2 runs" in said.out


@pytest.fixture(scope="module")
def swept(backbone: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base-to-new sweep's command line; it has run."""
    out = tmp_path_factory.mktemp("sweeps") / "b2n"
    line = command_of("base_to_new", photos, out, "--methods", "coop", "taskres", "--seeds", "1", "2", "--shots", "2")
    line += ["--backbone", backbone, "--workers", "1", "--set", *SET]
    assert main(line) == 0
    return line


def test_base_to_new(swept: list[str], photos: str) -> None:
    out = Path(swept[swept.index("--out") + 1])
    text = (out / "table.md").read_text()
    assert text.splitlines()[0].startswith(f"| method | {photos} base | {photos} new | {photos} H | mean base |")
    assert "4 of 4 runs" in text and "| taskres |" in text
    rows = csv_rows(out / "results.csv")
    assert [(r["method"], r["seed"], r["column"]) for r in rows][:4] == [
        ("coop", "1", "base"), ("coop", "1", "new"), ("taskres", "1", "base"), ("taskres", "1", "new"),
    ]  # fmt: skip
    assert all((r["accuracy"] == "") == (r["method"] == "taskres" and r["column"] == "new") for r in rows)
    assert {path.stem for path in out.glob("*.png")} == {"base_new", "reliability_base", "reliability_new"}
    page = (out / "report.html").read_text()
    assert "Base and new" in page and "Can the probabilities be trusted? (new)" in page


def test_the_same_command_reads_what_is_there(swept: list[str], capsys: pytest.CaptureFixture) -> None:
    out = Path(swept[swept.index("--out") + 1])
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert main(swept) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
    said = capsys.readouterr()
    assert "| coop |" in said.out and "[4/4," in said.err
    changed = [word.replace("epochs=1", "epochs=2") for word in swept]
    assert main(changed) == 2
    said = capsys.readouterr().err
    assert "holds another sweep (set is " in said and "give another --out, or --overwrite to change its plan" in said
    assert main([*changed, "--overwrite"]) == 0


def test_transfer_in_processes(backbone: str, photos: str, tmp_path: Path) -> None:
    os.symlink(photos, tmp_path / "again")
    line = command_of("cross_dataset", photos, tmp_path / "out", "--targets", str(tmp_path / "again"))
    line += ["--methods", "zero_shot", "--seeds", "1", "--backbone", backbone, "--workers", "2"]
    assert main(line) == 0
    (one, other) = csv_rows(tmp_path / "out/results.csv")
    assert one["column"] == "source" and one["accuracy"] == other["accuracy"]


def test_rates_are_chosen_on_val(photos: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = command_of("few_shot", photos, tmp_path / "out", "--methods", "zero_shot", "taskres", "--seeds", "1", "2")
    line += ["--shots", "1", "2", "--rates", "1", "100", "--backbone", backbone, "--workers", "1"]
    line += ["--set", *SET[:-2], SET[-1]]
    assert main(line) == 0
    tried = csv_rows(tmp_path / "out/rates.csv")
    assert [(row["method"], row["times"]) for row in tried] == [("taskres", "1.0"), ("taskres", "100.0")]
    chosen = max(tried, key=lambda row: float(row["val_accuracy"]))
    rows = csv_rows(tmp_path / "out/results.csv")
    assert {row["lr"] for row in rows if row["method"] == "taskres"} == {chosen["lr"]}
    assert len(rows) == 8 and len({row["accuracy"] for row in rows if row["method"] == "zero_shot"}) == 1
    assert all(float(row["use_seconds"]) > 0 for row in rows)
    assert len(list((tmp_path / "out/runs").glob("*/zero_shot/*/results.json"))) == 2  # val and test: it learns nothing
    text = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| lr | trained | training at 2 shots, s | use, ms a picture |" in text
    assert "chosen on val among 1, 100 × the recipes'" in text and "code " in text
    capsys.readouterr()
    assert main(line) == 0 and "8 of 8 runs" in capsys.readouterr().out


def test_which_rate_is_best() -> None:
    assert ordered([0.1, 1, 10, 3]) == [1, 3, 0.1, 10]
    asked = list(trials("few_shot", ["a", "b"], [], ["coop", "zero_shot"], [1, 2], [4, 16]))
    tried = list(candidates(asked, {"coop": 2e-3}, [1, 10]))
    assert [(rate.times, trial.data, trial.shots, trial.seed) for rate, trial in tried] == [
        (1, "a", 16, 1), (10, "a", 16, 1), (1, "b", 16, 1), (10, "b", 16, 1),
    ]  # fmt: skip
    assert tried[1][1].options == (("eval_on", "val"), ("lr", "0.02"))
    found = {Tried("coop", 1): [row("coop", "accuracy", 0.5)], Tried("coop", 10): [row("coop", "accuracy", 0.5)]}
    assert best(found)["coop"].times == 1
    found[Tried("coop", 3)] = [row("coop", "accuracy", 0.9), row("coop", "accuracy", None)]  # it failed on one set
    assert best(found)["coop"].times == 1
    settings = settings_of(tried[1][1], Path("x"), [("lr", "2e-3"), ("eval_on", "test"), ("epochs", "1")], "reference")
    assert (settings["lr"], settings["eval_on"], settings["epochs"]) == ("0.02", "val", "1")  # whatever --set says
    assert at_rates(asked[0], {"coop": "0.02"}).options == (("lr", "0.02"),) and at_rates(asked[0], {}) == asked[0]


@pytest.mark.parametrize(("name", "protocol"), [("world_open", "base_to_new"), ("world_few_shot", "few_shot")])
def test_the_shipped_presets_are_plans(name: str, protocol: str) -> None:
    plan = planned(sweep, PLANNED, {"sweep": name, "seeds": [2]})
    assert plan["protocol"] == protocol and plan["seeds"] == [2] and len(plan["data"]) == 2
    assert {"coop", "gda", "tip_adapter_f", "clip_lora", "vpt"} <= set(plan["methods"])
    options = own_settings(plan)
    for method in plan["methods"]:
        trial = Trial("world/open/objects", method, 16, 1, "base", ())
        settings = fit.resolve([("", settings_of(trial, Path("x"), options[method], "reference"))])
        assert settings["recipe"] and settings["method"].build()


def test_a_run_that_fails_is_told(photos: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = command_of("all_classes", photos, tmp_path / "out", "--methods", "coop", "--seeds", "1", "--shots", "2")
    line += ["--backbone", backbone, "--workers", "1", "--set", "method.context=30"]
    assert main(line) == 1
    said = capsys.readouterr()
    assert "a text of this model holds 24 tokens" in said.err and "- failed: " in said.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "coopp"], 'unknown method "coopp", did you mean "coop"?'),
        (["--set", "lr"], "--set takes OPTION=VALUE"),
        (["--set", "kgcoop:lr=1"], 'the sweep has no method "kgcoop", did you mean "coop"?'),
        (["--methods", "coop", "--set", "method.weight=3"], 'none of coop has "weight"'),
        (["--sweep", "world_opn"], 'unknown sweep "world_opn", did you mean "world_open"?'),
        (
            ["--protocol", "few_shot", "--methods", "coop", "dual_coop"],
            "dual_coop learns any number of labels a picture, which",
        ),
        (["--protocol", "few_shot", "--search", "true"], "--search is ELEVATER's, and looks for rates itself"),
        (["--protocol", "imbalanced", "--rates", "1", "3"], "--rates chooses on val, and imbalanced is for methods"),
        (["--set", "seed=3"], "--set cannot set seed"),
        (["--set", "epoch=3"], 'unknown option "epoch" in --set, did you mean "epochs"?'),
        (["--set", "lr=fast"], '--lr takes a number or find, not "fast"'),
        (
            ["--protocol", "base_new"],
            "takes one of base_to_new, all_classes, few_shot, cross_dataset, domain_generalisation",
        ),
    ],
)
def test_mistakes(words: list[str], says: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(command_of("few_shot", photos, tmp_path / "out", "--methods", "coop", *words)) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
