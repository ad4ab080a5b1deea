"""Subjects × methods × seeds in one table, resumed, with what is wrong told before anything runs."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffusion_peft.commands import sweep as module
from diffusion_peft.commands.main import main
from diffusion_peft.commands.sweep import PLANNED, label_of, trainings
from diffusion_peft.commands.sweep_worker import carry_out
from peft_core.config_files import list_configs
from peft_core.errors import PeftError
from peft_core.files import read_yaml
from peft_core.jobs.sweep.pool import Pool


class Here(Pool):
    """A pool without processes; `lost` runs end with an error."""

    done: list[str] = []
    lost: tuple[str, ...] = ()

    def __init__(self, count, threads, out, work, parcel) -> None:
        assert work is carry_out
        super().__init__(count, threads, out, work, parcel)

    def run(self, jobs, done) -> None:
        for job in jobs:
            settings, *rest = self.parcel(job, self.out)
            wrong = {"lr": -1} if str(job) in self.lost else {}
            Here.done.append(str(job))
            done(job, carry_out(settings | wrong, *rest))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    monkeypatch.setattr("peft_core.jobs.sweep.pool.Pool", Here)
    Here.done, Here.lost = [], ()
    return Here


def flags(sd15: str, out: Path) -> list[str]:
    fixed = ["prompt=a sks thing", "class_prompt=a thing", "steps=2", "sample_count=0", "sample_steps=1", "prior_count=1",
             "method.rank=2", "textual_inversion:placeholder=<new>", "textual_inversion:initializer=t",
             "textual_inversion:prompt=a <new>", "textual_inversion:class_prompt=null", "trainer.accelerator=cpu"]  # fmt: skip
    return ["sweep", "--base", sd15, "--data", "world/subjects/1", "--methods", "lora", "textual_inversion", "--out",
            str(out), "--set", *fixed, "--evaluation.count", "1", "--evaluation.steps", "1", "--evaluation.prompts",
            "{} b", "{} c", "--evaluation.scales", "1"]  # fmt: skip


@pytest.mark.slow
def test_a_table_that_goes_on(sd15: str, tmp_path: Path, here: type[Here], capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    here.lost = ("world/subjects/1 lora seed 0",)
    assert main(flags(sd15, out)) == 1
    assert "lora seed 0 failed: --lr must be above 0" in capsys.readouterr().err
    assert json.loads((out / "results.json").read_text())["methods"][1]["method"] == "textual_inversion"
    kept = {
        path: path.stat().st_mtime_ns
        for path in (out / "runs" / "world_subjects_1" / "textual_inversion").rglob("*.png")
    }
    here.done, here.lost = [], ()
    assert main(flags(sd15, out)) == 0
    assert here.done == ["world/subjects/1 lora seed 0"]
    results = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in results["methods"]][:3] == ["base", "lora", "textual_inversion"]
    assert results["runs"][-1]["parameters"] == 24 and results["real"][0]["subject"]["separation"] > 0.5
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    here.done = []
    assert main(["sweep", "--config", str(out)]) == 0 and here.done == []
    plan = {"data": ["world/subjects/0"], "methods": ["lora"], "grid": ["lr=1,2"], "set": ["prompt=a"]}
    assert [label_of(job) for job in trainings(module.PLANNED | plan)] == ["lora lr=1", "lora lr=2"]
    assert main([*flags(sd15, out), "--seeds", "1"]) == 2
    assert "holds another sweep (seeds is [0] there, [1] here)" in capsys.readouterr().err
    assert not list(out.rglob("last.ckpt"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--set", "stepps=3"], 'unknown option "stepps" in --set, did you mean "steps"'),
        (["--set", "seed=3"], "--set cannot set seed"),
        (["--set", "lorra:steps=3"], 'no method "lorra", did you mean "lora"'),
        (["--set", "steps=many"], "--steps takes a whole number"),
        (["--set", "lr=-1"], "--lr must be above 0"),
        (["--grid", "lr=1e-3,-1"], "--lr must be above 0"),
        (["--grid", "lr=1e-3,1e-3"], "needs values that differ"),
        (["--evaluation.count", "0"], "--evaluation.count must be 1 or more"),
        (["--evaluation.cuont", "2"], 'did you mean "--evaluation.count"'),
        (["--methods", "lorra"], 'did you mean "lora"'),
    ],
)
def test_mistakes(line: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fixed = ["sweep", "--data", "world/subjects/1", "--out", f"{tmp_path}/not"]
    assert main([*fixed, *([] if "--methods" in line else ["--methods", "lora"]), *line]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "not").exists()


def test_judges_are_opened_before_a_sweep_over_ones_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "dog" / "a.png")
    asked: list[str] = []
    monkeypatch.setattr("diffusion_peft.evaluation.scorers.open_scorers", lambda *given, drawn: asked.append(given[0]))
    monkeypatch.setattr(module, "train", lambda jobs, folder, evaluation, how: {jobs[0]: how["out"]})
    out = str(tmp_path / "out")
    line = ["sweep", "--data", str(tmp_path / "dog"), "--methods", "lora", "--set", "prompt=a dog", "--out", out]
    assert main([*line, "--evaluation.image_features", "vit_tiny_patch16_224"]) == 1
    assert asked == ["vit_tiny_patch16_224"] and f"failed: {out}" in capsys.readouterr().err


def test_the_sweeps_that_ship() -> None:
    for path in list_configs("sweep", "diffusion").values():
        plan = module.PLANNED | {"evaluation": {}} | read_yaml(path)
        jobs = trainings(plan)
        assert {job.method for job in jobs} == set(plan["methods"]) >= {"lora", "dora", "lokr", "full"}
        assert len(jobs) >= len(plan["data"]) * len(plan["methods"]) * len(plan["seeds"])
        assert len({job.folder for job in jobs}) == len(jobs)


def test_a_text_method_takes_its_name_and_options_apart() -> None:
    plan = PLANNED | {"data": ["world/subjects/1"], "methods": ["lora"], "evaluation": {}}
    (job,) = trainings(plan | {"set": ["text_method.name=lora", "text_method.rank=2", "prompt=a thing"]})
    assert job.settings["text_method"] == {"name": "lora", "rank": "2"}
    with pytest.raises(PeftError, match="rnak"):
        trainings(plan | {"set": ["text_method.name=lora", "text_method.rnak=2", "prompt=a thing"]})
