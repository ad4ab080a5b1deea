"""`vision_peft noah`: what it writes, one stage at a time, in parallel, with a given subnet, and mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from peft_core import PeftError, adapt, count_parameters, load_adapter, load_run
from peft_core.jobs.cli.main import main
from peft_core.registry import make_method
from tests.vision_peft.noah.conftest import BUDGET, SMALL
from tests.vision_peft.test_use import same_probabilities
from vision_peft.backbones import load_backbone
from vision_peft.commands import main as vision_peft
from vision_peft.noah.command import SpaceChoice, noah
from vision_peft.noah.fitness import Fitness
from vision_peft.noah.folders import SearchFolder
from vision_peft.noah.forms import Forms
from vision_peft.noah.outcome import verdict
from vision_peft.noah.search import best
from vision_peft.noah.space import Space


def test_all_stages_and_baselines(searched: Path) -> None:
    results = json.loads((searched / "results.json").read_text())
    found = results["found"]
    assert set(found) == {"noah", "random", "uniform_vpt", "uniform_lora", "uniform_adapter"}
    assert all(0 < each["inserted"] <= BUDGET for each in found.values())
    assert results["verdict"].startswith("Search ") and results["search"]["candidates"] == 24
    assert "Chosen widths" in (searched / "report.html").read_text()
    for name in ("search.png", "subnet.png"):
        assert (searched / "search" / name).read_bytes()[:4] == b"\x89PNG"
    assert not (searched / "search" / "scores.csv").exists()
    run = load_run(searched)
    assert count_parameters(run.model).inserted == found["noah"]["inserted"]
    assert run.config["method"]["widths"] == results["chosen"]
    stages = [load_run(searched / stage).config for stage in ("supernet", "retrain", "baselines/random")]
    for key in ("normalise", "resize", "backbone", "data", "seed"):
        assert stages[0][key] == stages[1][key] == stages[2][key], key


def test_the_search_chose_what_scores_best(searched: Path, tiny_backbone: str) -> None:
    space = Space(dims=(1, 2), depths=(2, 6), dropout=0.1)
    candidates = SearchFolder(searched / "search", "vision_peft noah").read_candidates(space)
    fitness, chosen = Fitness.of(searched / "supernet", space), best(candidates)[0]
    assert all(fitness(each.subnet).correct == each.score.correct for each in candidates[::5])
    assert make_method(str(searched / "search" / "subnet.yaml")) == space.method(chosen.subnet)
    model, _ = load_backbone(tiny_backbone, 3)
    load_adapter(model.eval(), searched / "search" / "adapter")
    assert count_parameters(model).inserted == chosen.parameters
    with torch.inference_mode():
        fitness.supernet.choose(chosen.subnet)
        images, _ = fitness.batches[0]
        assert torch.equal(model.eval()(images), fitness.supernet(images))


def test_again_changes_nothing_and_other_settings_are_refused(
    searched: Path, small_data: str, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in searched.rglob("*") if path.is_file() and path.parent != searched}
    same = {"data": small_data, "backbone": tiny_backbone, "out": str(searched), "budget": BUDGET} | SMALL
    noah(**same)
    assert "uniform_lora" in capsys.readouterr().out  # finished baselines stay in the table
    assert main("vision_peft", [noah], ["noah", "--config", str(searched)]) == 0
    assert "uniform_lora" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(PeftError, match=r"search\.generations is 3 there, 4 here"):
        noah(**same | {"search": SMALL["search"] | {"generations": 4}})
    with pytest.raises(PeftError, match="holds another run"):
        noah(**same | {"seed": 1, "stage": "search"})


@pytest.mark.parametrize("how", [{"workers": 2}, pytest.param({"ray": "local", "workers": 2}, marks=pytest.mark.slow)])
def test_in_parallel_it_finds_the_same(
    searched: Path, small_data: str, tiny_backbone: str, tmp_path: Path, how: dict
) -> None:
    shutil.copytree(searched / "supernet", tmp_path / "noah" / "supernet")
    (tmp_path / "noah" / "config.yaml").write_text((searched / "config.yaml").read_text())
    text = (tmp_path / "noah" / "supernet" / "config.yaml").read_text()
    moved = text.replace(str(searched), str(tmp_path / "noah"))
    (tmp_path / "noah" / "supernet" / "config.yaml").write_text(moved)
    same = {"data": small_data, "backbone": tiny_backbone, "out": str(tmp_path / "noah"), "budget": BUDGET} | SMALL
    assert noah(**same, stage="search", **how) == {}
    for name in ("candidates.csv", "subnet.yaml", "adapter/adapter.safetensors"):
        assert (tmp_path / "noah" / "search" / name).read_bytes() == (searched / "search" / name).read_bytes(), name


def test_a_given_subnet_is_trained_as_it_is(small_data: str, tiny_backbone: str, tmp_path: Path) -> None:
    subnet = tmp_path / "mine.yaml"
    subnet.write_text("method: noah\nwidths: {lora: [0, 0, 0, 1, 2, 3]}\n")
    settings = {"data": small_data, "backbone": tiny_backbone, "out": str(tmp_path / "run")} | SMALL
    del settings["space"]  # whose 12 blocks this backbone lacks: a given subnet need not lie in it
    results = noah(**settings, subnet=str(subnet))
    assert results["found"]["noah"]["inserted"] == 6 * (64 + 192) and not (tmp_path / "run" / "supernet").exists()
    subnet.write_text("method: noah\nwidths: {lora: [1, 2, 3]}\n")
    with pytest.raises(PeftError, match="lora got 3 widths, but the model has 6 blocks"):
        noah(**settings | {"out": str(tmp_path / "other")}, subnet=str(subnet))
    with pytest.raises(PeftError, match="it goes with --stage retrain"):
        noah(**settings, subnet=str(subnet), stage="search")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budget", "10"], "is below the smallest subnet of this space: the smallest inserts"),
        (["--budget", "10000000"], "is above the largest subnet"),
        (["--space.depths", "3", "12"], "goes 12 blocks deep, but the backbone has 6"),
        (["--space.methods", "vpt", "bitfit"], "bitfit has no width"),
        (["--space", "vtabb"], 'unknown space "vtabb", did you mean "vtab"?'),
        (["--recipe", "wold"], 'unknown recipe "wold", did you mean "world"?'),
        (["--stage", "search"], "run --stage supernet before --stage search"),
        (["--stage", "retrain"], "run --stage search first, or give --subnet FILE"),
        (["--subnet", "noah/cifar10"], 'did you mean "noah/cifar100"?'),
        (["--subnet", "noah/cifar100"], "got 12 widths, but the model has 6 blocks"),
        (["--search.mutation_rate", "2"], "mutation_rate must be in [0, 1], not 2"),
        (["--supernet.epochs", "many"], '--supernet.epochs takes a whole number, not "many"'),
        (["--supernet.epochs", "0"], "--supernet.epochs must be 1 or more, not 0"),
        (["--retrain.lr", "-1"], "--retrain.lr must be above 0"),
        (["--training.lr", "1"], "unknown option --training.lr"),
        (["--trainer.devices", "2"], "noah trains on one device"),
    ],
)
def test_mistakes(
    words: list[str], says: str, small_data: str, tiny_backbone: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = ["noah", "--data", small_data, "--backbone", tiny_backbone, "--out", str(tmp_path / "run")]
    line += [] if "--space.depths" in words else ["--space.depths", "3", "6"]
    assert main("vision_peft", [noah], [*line, *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists() or "--stage" in words


def test_without_val_there_is_nothing_to_search_on(tiny_backbone: str, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / "train" / label).mkdir(parents=True)
        (tmp_path / "data" / "test" / label).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / "train" / label / "0.png")
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / "test" / label / "0.png")
    with pytest.raises(PeftError, match="has no val split, on which subnets are scored"):
        noah(data=str(tmp_path / "data"), backbone=tiny_backbone, out=str(tmp_path / "run"), **SMALL)


def test_the_verdict_knows_what_one_run_can_tell() -> None:
    def said(ours: float, theirs: float) -> str:
        of = {"inserted": 1, "pictures": 2000}
        return verdict({"noah": of | {"accuracy": ours}, "random": of | {"accuracy": theirs}})

    assert "Search pays here: +10.0 points against random" in said(0.6, 0.5)
    assert "costs accuracy" in said(0.5, 0.6) and "makes no difference that shows" in said(0.51, 0.5)


def test_few_shot_space_on_vit_b() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=10)
    space = Space(**SpaceChoice.preset("few_shot"))
    forms = Forms(model, space)
    largest = space.largest(12)
    assert forms.count(largest) == 12 * (76_800 + 307_200 + 154_468)  # the paper's super-weights
    assert forms.count(largest) == count_parameters(adapt(model, space.method(largest))).inserted
    vtab = Space(**SpaceChoice.preset("vtab"))
    assert Forms(model, vtab).count(vtab.largest(12)) == 654_456


@pytest.mark.slow  # noah is exported in test_outside
def test_export_and_use_of_the_chosen_subnet(searched: Path, tmp_path: Path) -> None:
    assert vision_peft(["export", "--run", str(searched), "--out", str(tmp_path / "m.onnx")]) == 0
    assert same_probabilities(searched, tmp_path / "m.onnx")
