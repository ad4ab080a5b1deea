"""Sweeps of tiny runs: the table, going on after a kill, failing runs, versions, Ray."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from peft_core import load_run
from peft_core.errors import PeftError
from peft_core.jobs.cli.main import main
from peft_core.jobs.runs.training import CHECKPOINT
from peft_core.jobs.sweep.folder import SweepFolder
from peft_core.jobs.sweep.jobs import Job
from peft_core.jobs.sweep.outcome import Outcome
from peft_core.jobs.sweep.pool import Pool
from peft_core.jobs.sweep.preset import planned
from tests.killed import SERVER, preload
from vision_peft.commands import commands
from vision_peft.fit import fit
from vision_peft.sweep.command import PLANNED, sweep
from vision_peft.sweep.plan import make_plan
from vision_peft.sweep.stamp import stamp_of_recipe
from vision_peft.sweep.worker import carry_out, parcel_of

preload(__name__, "vision_peft.sweep.run", "vision_peft.sweep.worker")
COMMON = ["trainer.max_epochs=1", "batch_size=4", "recipe=digits", "drop_path=0.1"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two folders of pictures: dark and bright, red and blue, 6 + 2 + 4 of each."""
    root = tmp_path_factory.mktemp("tasks")
    chance = torch.Generator().manual_seed(0)
    colours = {
        "light": {"dark": (40, 40, 40), "bright": (200, 200, 200)},
        "hue": {"red": (180, 60, 60), "blue": (60, 60, 180)},
    }
    for task, classes in colours.items():
        for name, colour in classes.items():
            for split, count in (("train", 6), ("val", 2), ("test", 4)):
                folder = root / task / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    noise = torch.randint(0, 50, (20, 20, 3), generator=chance)
                    pixels = (torch.tensor(colour) + noise).to(torch.uint8).numpy()
                    Image.fromarray(pixels).save(folder / f"{number}.png")
    return [str(root / "light"), str(root / "hue")]


def run(tasks: list[str], tiny: str, out: Path, **changes) -> int:
    settings = {
        "data": tasks, "methods": ["linear", "lora"], "seeds": [0, 1], "grid": ["method.rank=1,2"], "set": COMMON,
        "backbone": tiny, "workers": 2, "threads": 1,
    } | changes  # fmt: skip
    return sweep(out=str(out), **settings)


@pytest.fixture(scope="module")
def whole(tasks: list[str], tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "sweep"
    assert run(tasks, tiny_backbone, out) == 0
    return out


def rows(out: Path) -> list[dict[str, str]]:
    """results.csv without what a clock says and where the folder lies."""
    with open(out / "results.csv") as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def adapters(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("adapter.safetensors"))}


def test_table_and_files(whole: Path) -> None:
    found = rows(whole)
    assert [(row["method"], row["seed"]) for row in found[:4]] == [
        ("linear", "0"), ("linear", "1"), ("lora", "0"), ("lora", "1"),
    ]  # fmt: skip
    assert len(found) == 8 and {row["scored_on"] for row in found} == {"test"}
    lora = [row for row in found if row["method"] == "lora"]
    assert all(row["settings"] in ("method.rank=1", "method.rank=2") for row in lora)
    with open(whole / "grid.csv") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "mean of 2" in (whole / "table.md").read_text() and b"<img" in (whole / "report.html").read_bytes()
    assert {path.name for path in next(whole.glob("runs/*/linear/test-seed0")).iterdir()} == {
        "config.yaml", "results.json", "adapter",
    }  # fmt: skip


def test_a_run_of_a_sweep_is_a_run_of_fit(whole: Path, tmp_path: Path) -> None:
    """To the last bit, though backbone and pictures are kept from run to run; and it is used like one."""
    for folder in (next(whole.glob("runs/*light/linear/test-seed1")), next(whole.glob("runs/*hue/lora/*/test-seed1"))):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        alone = fit.function(
            **fit.resolve(fit.read_line(["--config", str(folder), "--out", str(tmp_path / folder.parent.name)]))
        )
        torch.set_num_threads(threads)
        assert alone["accuracy"] == json.loads((folder / "results.json").read_text())["accuracy"]
        mine, its = (load_file(run / "adapter/adapter.safetensors") for run in (tmp_path / folder.parent.name, folder))
        assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)
    assert load_run(folder).class_names == ("blue", "red")


def test_nothing_is_run_twice_and_the_folder_re_runs_itself(whole: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("results.json")}
    assert main("vision_peft", commands(), ["sweep", "--config", str(whole)]) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("results.json")} == before
    assert "| linear |" in capsys.readouterr().out


def test_another_plan_or_version_is_told(
    whole: Path, tasks: list[str], tiny_backbone: str, tmp_path: Path, monkeypatch
) -> None:
    with pytest.raises(PeftError, match="holds another sweep .seeds is .0, 1. there, .0. here"):
        run(tasks, tiny_backbone, whole, seeds=[0])
    with monkeypatch.context() as patch:
        patch.setattr("peft_core.__version__", "9.0")
        with pytest.raises(PeftError, match=r"holds 12 runs of another version \(.*package 0\..* there, 9.0 now"):
            run(tasks, tiny_backbone, whole)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(PeftError, match="files that are no sweep's"):
        run(tasks, tiny_backbone, tmp_path / "other")
    for left in (".lock", ".config.yaml.4242"):  # by a sweep killed before its plan was written
        (tmp_path / "killed" / left).parent.mkdir(exist_ok=True)
        (tmp_path / "killed" / left).touch()
    assert SweepFolder(str(tmp_path / "killed"), {}, overwrite=False, program="vision_peft sweep").path.is_dir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(PeftError, match="1 MiB of free space"):
        run(tasks, tiny_backbone, tmp_path / "new")


def test_only_what_another_version_made_is_run_again(
    tasks: list[str], tiny_backbone: str, tmp_path: Path, monkeypatch
) -> None:
    small = {"methods": ["linear", "bitfit"], "seeds": [0], "grid": [], "workers": 1}
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **small) == 0
    made = {path.parts[-3]: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    (mark,) = tmp_path.glob("s/runs/*/bitfit/test-seed0.stamp")
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"method": "other"}))
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **small, overwrite=True) == 0
    again = {path.parts[-3]: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    assert again["linear"] == made["linear"] and again["bitfit"] > made["bitfit"]


def test_a_recipes_settings_are_its_stamp_its_comments_are_not(tmp_path: Path) -> None:
    stamps = []
    for text in ("# AdamW\nlr: 1.0e-3\n", "# another word\nlr: 0.001\n", "# AdamW\nlr: 2.0e-3\n"):
        (tmp_path / "recipe.yaml").write_text(text)
        stamp_of_recipe.cache_clear()
        stamps.append(stamp_of_recipe(str(tmp_path / "recipe.yaml")))
    assert stamps[0] == stamps[1] != stamps[2]


def test_what_was_begun_with_settings_of_another_version_begins_again(
    tasks: list[str], tiny_backbone: str, tmp_path: Path
) -> None:
    small = {"methods": ["bitfit"], "seeds": [0], "grid": [], "workers": 1}
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **small) == 0
    (results,) = tmp_path.rglob("results.json")
    results.rename(results.with_name(CHECKPOINT))  # half-way, with a setting that is known no more
    config = results.with_name("config.yaml")
    config.write_text(config.read_text() + "forgotten: 1\n")
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **small) == 0
    assert results.is_file() and "forgotten" not in config.read_text()


def killed(tasks: list[str], tiny: str, out: Path) -> None:
    os.setsid()
    run(tasks, tiny, out)


def test_killed_and_gone_on_with(whole: Path, tasks: list[str], tiny_backbone: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    child = SERVER.Process(target=killed, args=(tasks, tiny_backbone, out))
    child.start()
    until = time.monotonic() + 60
    while not (before := list(out.rglob("results.json"))) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    assert 0 < len(before) < 12
    assert run(tasks, tiny_backbone, out) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert rows(out) == rows(whole) and adapters(out) == adapters(whole)


def test_failing_runs_stop_nothing(
    tasks: list[str], tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A method that does not fit the model, and a folder without pictures."""
    gone = tmp_path / "gone"
    gone.mkdir()
    options = {"methods": ["linear", "lora"], "seeds": [0], "grid": [], "set": [*COMMON, "lora:method.rank=500"]}
    assert run([tasks[0], str(gone)], tiny_backbone, tmp_path / "s", **options) == 1
    said = capsys.readouterr()
    assert "3 runs failed" in said.err and "above the layer's width" in said.err and "has no folder" in said.err
    assert "| linear |" in said.out and len(rows(tmp_path / "s")) == 1
    assert "Runs that failed" in (tmp_path / "s/report.html").read_text()


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    pool, ended = Pool(1, 1, tmp_path, carry_out, parcel_of), {}
    jobs = [
        Job("digits", "linear", seed, (), "test", {"method": {"name": "linear"}, "backbone": "x"}) for seed in (0, 1)
    ]

    def done(job: Job, outcome) -> None:
        ended[job.seed] = outcome.error

    def kill_first() -> None:
        while not pool.workers:
            time.sleep(0.01)
        os.kill(pool.workers[0].process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_first)
    thread.start()
    pool.run(jobs, done)
    thread.join()
    pool.close()
    assert "killed by SIGKILL" in ended[0] and "fit needs --data" in ended[1]


def test_a_full_disk_stops_the_sweep() -> None:
    with Outcome() as outcome:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/x")
        except OSError as error:
            raise PeftError("cannot write to /x (No space left on device).") from error
    assert outcome.fatal and outcome.error.startswith("cannot write to /x") and not outcome.trace
    with Outcome() as outcome:
        raise KeyError("x")
    assert not outcome.fatal and outcome.error == "KeyError: 'x'" and "Traceback" in outcome.trace


def test_best_methods_get_more_seeds(tasks: list[str], tiny_backbone: str, tmp_path: Path) -> None:
    options = {"methods": ["linear", "bitfit", "vpt"], "seeds": [0], "grid": [], "best": 1, "best_seeds": [0, 1]}
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **options) == 0
    seeds = [row["method"] for row in rows(tmp_path / "s")]
    assert seeds.count("linear") == 2 and len(seeds) == 5
    with pytest.raises(PeftError, match="go together"):
        run(tasks[:1], tiny_backbone, tmp_path / "s", best=1)


def test_one_choice_for_all_data_sets(tasks: list[str], tiny_backbone: str, tmp_path: Path) -> None:
    options = {"methods": ["linear"], "seeds": [0], "grid": ["lr=1e-7,1e-2"], "choose_on": tasks}
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **options) == 0
    with open(tmp_path / "s/grid.csv") as file:
        tried = [(row["settings"], float(row["accuracy"])) for row in csv.DictReader(file)]
    means = {rate: sum(score for other, score in tried if other == rate) for rate, _ in tried}
    (row,) = rows(tmp_path / "s")
    assert len(tried) == 4 and len(means) == 2 and row["settings"] == max(means, key=means.__getitem__)
    assert "chosen once, by the mean val accuracy of" in (tmp_path / "s/table.md").read_text()
    with pytest.raises(PeftError, match="choose_on is .* there, .* here"):
        run(tasks[:1], tiny_backbone, tmp_path / "s", **options | {"choose_on": tasks[:1]})


def test_legacy_is_labelled(tasks: list[str], tiny_backbone: str, tmp_path: Path) -> None:
    options = {"methods": ["lora"], "seeds": [0], "protocol": "legacy"}
    assert run(tasks[:1], tiny_backbone, tmp_path / "s", **options) == 0
    assert len(rows(tmp_path / "s")) == 1 and len(list(tmp_path.rglob("results.json"))) == 2
    assert "epoch and settings were chosen on the test set" in (tmp_path / "s/table.md").read_text()


@pytest.mark.slow  # an extra; a pool of processes runs the same work each time
def test_ray_gives_the_same(tasks: list[str], tiny_backbone: str, tmp_path: Path) -> None:
    options = {"methods": ["linear", "lora"], "seeds": [0], "grid": [], "workers": 1}
    assert run(tasks[:1], tiny_backbone, tmp_path / "ray", **options, ray="local") == 0
    assert run(tasks[:1], tiny_backbone, tmp_path / "pool", **options) == 0
    assert adapters(tmp_path / "ray") == adapters(tmp_path / "pool") and len(adapters(tmp_path / "ray")) == 2
    assert rows(tmp_path / "ray") == rows(tmp_path / "pool")
    with pytest.raises(PeftError, match="no Ray cluster answers at 127.0.0.1:1"):
        run(tasks[:1], tiny_backbone, tmp_path / "none", **options, ray="127.0.0.1:1")


@pytest.mark.parametrize(
    ("name", "tasks", "runs"), [("readme", 19, 0), ("world_weights", 8, 6 * 58), ("world_streams", 8, 6 * 50)]
)
def test_the_shipped_sweeps_are_plans(name: str, tasks: int, runs: int) -> None:
    plan = planned(sweep, PLANNED, {"sweep": name})
    names = ("data", "methods", "seeds", "grid", "set", "backbone", "protocol", "choose_on")
    found = make_plan(*(plan[key] for key in names))
    assert len(found.tasks) == tasks and "linear" in found.methods and len(list(found.choosing())) == runs
