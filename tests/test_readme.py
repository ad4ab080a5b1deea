"""The commands and Python lines of the README and of the pages for a first day run, and give what stands beside them."""

import importlib
import re
import shlex
import shutil

import open_clip
import pytest
import timm
import torch
from diffusers import ControlNetModel
from peft_data import open_data, world_motion, world_open
from peft_data.digits import write_folders
from peft_data.world.subjects import write_subject
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import vision_peft.use
from diffusion_peft.evaluation import watcher
from peft_core.jobs.runs import onnx_file
from tests.readme import PAGES, ROOT, blocks, module_of

COMMANDS = [
    line.partition("#")[0].strip()
    for block in blocks("bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("vision_peft", "clip_peft", "diffusion_peft")) and "--control runs/" not in line
    and ("--backbone vit_" not in line or "~/vtab-1k" in line)
]  # fmt: skip
SHORT = {
    "fit": "--steps 4 --prior_count 2 --sample_count 1 --sample_steps 2",
    "sample": "--steps 2", "evaluate": "--steps 1 --scales 1", "export": "",
}  # fmt: skip
"""What the commands of diffusion_peft get besides, so that a test has time for them."""
REACHES = {"photos": 0.85, "world/open/objects": 0.6, "world/motion/direction": 0.85}
NEEDS_DATA = [line for line in COMMANDS if "~/vtab-1k" in line]


def main(line: str) -> int:
    program, *arguments = shlex.split(line)
    return importlib.import_module(module_of(program)).main(arguments)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with a picture and a folder of pictures, where the commands run one after another."""
    folder = tmp_path_factory.mktemp("desk")
    test = open_data("digits").test
    write_folders(folder / "photos", 10)
    write_subject(2, folder / "mug")
    (folder / "folder").mkdir()
    outline = Image.new("L", (64, 64))
    ImageDraw.Draw(outline).ellipse((16, 16, 44, 44), outline=255)
    outline.save(folder / "edges.png")
    for index in range(3):
        picture = Image.fromarray(test.items[index].permute(1, 2, 0).numpy())
        picture.save(folder / ("picture.png" if index == 0 else f"folder/{index}.png"))
    return folder


def test_there_are_commands():
    assert len(COMMANDS) >= 18 and len(NEEDS_DATA) == 2
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    linked = {
        link for page in PAGES for link in re.findall(r"\]\(([\w/.-]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    }
    assert linked and not [link for link in linked if not ((ROOT / link).exists() or (ROOT / "docs" / link).exists())]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", ["vision_peft", "clip_peft"])
def test_the_commands_run(program: str, whole: bool, desk, tmp_path, monkeypatch, capsys):
    """In one test, because each stands on the ones before it; the accuracies are reached by whole trainings."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    desk = tmp_path
    monkeypatch.chdir(desk)
    if whole:
        write_folders(desk / "photos", 60)
    else:
        monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(world_motion, "SPLITS", {"train": 12, "val": 4, "test": 8})
        monkeypatch.setattr(world_open, "SPLITS", {"train": 16, "val": 2, "test": 2})
        for module in (vision_peft.use, onnx_file):  # the wings' own tests write such files
            monkeypatch.setattr(module, "write_onnx", lambda model, run, target, *more: target.touch())
    for line in (line for line in COMMANDS if line.startswith(program) and line not in NEEDS_DATA):
        more = {"vision_peft": " --trainer.max_steps 2", "clip_peft": " --epochs 1 --cache_views 1"}[program]
        assert main(line + more if " fit " in line and not whole else line) == 0, f"{line}: {capsys.readouterr().err}"
        out = capsys.readouterr().out
        if " fit " in line and whole:
            accuracy = float(re.search(r"accuracy ([\d.]+)", out)[1])
            assert accuracy >= next(least for data, least in REACHES.items() if f"--data {data} " in line)
        if " predict " in line and "--out" not in line:
            rows = {"vision_peft": 3, "clip_peft": 2}[program]
            assert out.splitlines()[0] == "path,class,probability" and len(out.splitlines()) == 1 + rows
        elif "--out" in line:
            assert (desk / re.search(r"--out (\S+)", line)[1]).exists()


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_are_read(line: str):
    program, name, *words = shlex.split(line)
    (command,) = (each for each in importlib.import_module(module_of(program)).commands() if each.name == name)
    command.read_line(words)


@pytest.mark.parametrize("run", ["runs/mug", pytest.param("runs/edges", marks=pytest.mark.slow)])
def test_the_commands_on_diffusion_run(run, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setattr(watcher, "train_watcher", watcher.Watcher)
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "cache"))
    lines = [line for line in COMMANDS if line.startswith("diffusion_peft") and run in line]
    assert {line.split()[1] for line in lines} == set(SHORT) - ({"evaluate"} if run == "runs/mug" else set())
    for line in lines:
        more = SHORT[line.split()[1]] + (" --epochs 1" if "--epochs" in line else "")
        assert main(f"{line} {more}") == 0, f"{line}: {capsys.readouterr().err}"
    if run == "runs/edges":
        assert ControlNetModel.from_pretrained(desk / "runs/edges/export")
        return
    assert len(list((desk / "runs/mug/drawn").glob("00-*.png"))) == 4
    assert load_file(desk / "mug.safetensors").keys() >= {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    }


@pytest.mark.parametrize("line", NEEDS_DATA)
def test_the_command_says_what_data_it_needs(line: str, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("HOME", str(desk))
    assert main(line) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert "vtab" in sentence.lower()


def test_the_python_lines_run(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: create(name, pretrained=False, **more))
    (code,) = blocks("python", "import timm")
    exec(code, {})
    said = re.search(r"print\(count_parameters\(model\)\) +# (.*)", code)[1]
    assert capsys.readouterr().out.strip() == said
    assert (desk / "my_adapter/adapter.safetensors").stat().st_size < 3 * 2**20


def test_the_lines_on_clip_run(monkeypatch):
    create = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: create(name))
    (code,) = blocks("python", "OpenVocabulary")
    names = {"loader": [(torch.rand(2, 3, 224, 224), torch.tensor([0, 1]))]}
    exec(code, names)
    assert names["weights"].shape == (2, 512)
