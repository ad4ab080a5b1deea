"""Wrong configs, run folders, resumed runs, pictures, tables, names and numbers: each is told in one sentence, and what lay there
stays as it was."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_peft.commands import main as clip
from diffusion_peft.commands.main import main as diffusion
from vision_peft.commands import main as vision

MAIN = {"vision": vision, "clip": clip, "diffusion": diffusion}
FIT = "vision fit --data photos --trainer.max_steps 1 --out new"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, a finished run on them, and one that was stopped."""
    from vision_peft.fit import fit

    folder = tmp_path_factory.mktemp("desk")
    chance = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                path = folder / "photos" / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(torch.randint(0, 256, (24, 24, 3), generator=chance).byte().numpy()).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(data="photos", out="run", batch_size=4, trainer={"max_steps": 1, "accelerator": "cpu"})
    shutil.copytree(folder / "run", folder / "begun")
    (folder / "begun/results.json").unlink()
    return folder


def text(name: str, content: str | bytes) -> Callable[[], None]:
    """Writes a file."""

    def write() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def copied(source: str, target: str, change: Callable[[], None]) -> Callable[[], None]:
    def write() -> None:
        shutil.copytree(source, target)
        change()

    return write


def edited(name: str, **values: object) -> Callable[[], None]:
    def write() -> None:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        Path(name).write_text(json.dumps(content | values), encoding="utf-8")

    return write


def cut(name: str, size: int) -> Callable[[], None]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:size])


def bomb() -> None:
    Path("bomb.png").write_bytes(b"")
    Image.new("1", (30_000, 30_000)).save("bomb.png")


def pictures(*places: str) -> Callable[[], None]:
    def write() -> None:
        for place in places:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (len(place) % 256, 0, 0)).save(place)

    return write


def nothing() -> None:
    pass


pytestmark = pytest.mark.slow
CASES: dict[str, list[tuple[Callable[[], object], str, str]]] = {
    "configs": [
        (nothing, f"{FIT} --config none.yaml", "none.yaml"),
        (text("a.yaml", "- data\n- lr\n"), f"{FIT} --config a.yaml", "a.yaml"),
        (text("a.yaml", "lr:\t1\n\tx: 2\n"), f"{FIT} --config a.yaml", "no readable YAML"),
        (text("a.yaml", "lr: 1e-3\nlr: 2e-3\n"), f"{FIT} --config a.yaml", "twice"),
        (text("a.yaml", "lr: [1, 2]\n"), f"{FIT} --config a.yaml", "lr in a.yaml"),
        (text("a.yaml", "method: {name: lora, rank: four}\n"), f"{FIT} --config a.yaml", "method.rank in a.yaml"),
        (text("a.yaml", "method: [lora]\n"), f"{FIT} --config a.yaml", "method in a.yaml takes a name"),
        (text("a.yaml", "learning_rate: 1e-3\n"), f"{FIT} --config a.yaml", 'did you mean "lr"'),
        (text("a.yaml", "epochs: 3 epochs\n"), f"{FIT} --config a.yaml", "epochs in a.yaml"),
        (text("a.yaml", "seed: 2030-13-45\n"), f"{FIT} --config a.yaml", "no readable YAML"),
        (text("a.yaml", ""), "vision fit --config a.yaml", "needs --data"),
        (text("a.yaml", b"\x89PNG\r\n\x1a\n\x00\xff"), f"{FIT} --config a.yaml", "a.yaml"),
        (text("a.yaml", "command: clip_peft fit\nshots: 4\n"), f"{FIT} --config a.yaml", "clip_peft"),
        (text("a.yaml", "trainer: 5\n"), f"{FIT} --config a.yaml", "trainer in a.yaml"),
        (text("a.yaml", "trainer: {max_epochz: 5}\n"), f"{FIT} --config a.yaml", 'did you mean "trainer.max_epochs"'),
        (text("a.yaml", "lr: !!python/object:os.system x\n"), f"{FIT} --config a.yaml", "no readable YAML"),
        (text("a.yaml", "a: &a [*a]\n"), f"{FIT} --config a.yaml", "nested too deep"),
        (text("a.yaml", "---\nlr: 1\n---\nlr: 2\n"), f"{FIT} --config a.yaml", "no readable YAML"),
        (text("a.yaml", "a: " + "[" * 200 + "]" * 200), f"{FIT} --config a.yaml", "nested too deep"),
        (text("empty/x", ""), f"{FIT} --config empty", "empty"),
    ],
    "run folders": [
        (text("void/x", ""), "vision predict --run void photos", "is no run folder"),
        (nothing, "vision predict --run photos/test/cat/0.png photos", "there is no run folder"),
        (nothing, "clip test --run run", "is a run of vision_peft"),
        (nothing, "diffusion sample --run run --prompt x", "vision_peft"),
        (copied("run", "r", Path("r/adapter/adapter.safetensors").unlink), "vision test --run r", "adapter.safetensors"),
        (copied("run", "r", nothing), "vision test --run r/adapter", "is no run folder"),
        (copied("run", "r", cut("r/adapter/adapter.safetensors", 100)), "vision test --run r", "truncated"),
        (copied("run", "r", text("r/adapter/adapter.json", "")), "vision test --run r", "adapter.json"),
        (copied("run", "r", edited("r/adapter/adapter.json", class_names=3)), "vision test --run r", "class_names"),
        (copied("run", "r", edited("r/adapter/adapter.json", std=[0, 0, 0])), "vision test --run r", "std"),
        (copied("run", "r", edited("r/adapter/adapter.json", task="dancing")), "vision predict --run r photos", "does not know"),
        (copied("run", "r", edited("r/adapter/adapter.json", task=[1])), "vision test --run r", "does not know"),
        (nothing, "vision predict --runs run run -- photos", "twice"),
        (copied("run", "r", text("r/results.json", "[]")), "vision compare r", "holds no figures"),
        (copied("run", "r", text("r/config.yaml", "command: [")), "vision test --run r", "config.yaml"),
        (copied("run", "r", text("r/results.json", "{}")), "vision compare r", "damaged"),
        (nothing, "vision export --run run --out run/adapter/x.onnx", "file of the run itself"),
        (nothing, "vision merge --run run --out x.bin", "must end in .safetensors"),
        (pictures("p/train/ox/1.png", "p/test/ox/1.png", "p/train/ant/1.png", "p/test/ant/1.png"),
         "vision test --run run --data p", "other classes"),
        (nothing, "vision predict --run run", "needs pictures"),
    ],
    "resumed runs": [
        (nothing, "vision fit --data photos --lr 0.5 --out run", "holds another run (lr is"),
        (text("mine/letter.txt", "dear"), "vision fit --data photos --out mine", "no run's"),
        (text("file", ""), "vision fit --data photos --out file", "is a file"),
        (text("file", ""), "vision fit --data photos --out file/run", "is a file"),
        (text("begun/last.ckpt", "no checkpoint"), "vision fit --config begun", "delete it"),
        (cut("begun/last.ckpt", 500), "vision fit --config begun", "delete it"),
        (lambda: torch.save({"a": 1}, "begun/last.ckpt"), "vision fit --config begun", "something else"),
        (pictures("photos/train/cat/9.png"), "vision fit --config run", "its data have changed"),
        (lambda: shutil.rmtree("photos"), "vision fit --config begun", "photos"),
    ],
    "pictures": [
        (text("a.png", "words"), "vision predict --run run a.png", "is no picture that can be read"),
        (lambda: (Image.new("RGB", (99, 99)).save("a.jpg"), cut("a.jpg", 400)()), "vision predict --run run a.jpg", "a.jpg"),
        (text("a.png", ""), "vision predict --run run a.png", "a.png"),
        (nothing, "vision predict --run run none.png", "there is no file or folder none.png"),
        (text("letters/a.txt", "x"), "vision predict --run run letters", "there is no picture in letters"),
        (text("photos/train/cat/bad.png", "x"), FIT, "bad.png"),
        (bomb, "vision predict --run run bomb.png", "bomb.png"),
        (pictures("one/cat/1.png", "one/cat/2.png"), "vision fit --data one --out new", "one"),
        (text("none/cat/notes.txt", "x"), "vision fit --data none --out new", "none"),
        (text("mug/a.txt", "x"), "diffusion fit --data mug --prompt x --out new", "mug"),
    ],
    "tables": [
        (text("list.csv", "file,class\na.png,x\n"), "vision fit --data list.csv --out new", "path"),
        (text("list.csv", "path,label\nnone.png,x\nnone2.png,y\n"), "vision fit --data list.csv --out new", "none.png"),
        (text("list.csv", ""), "vision fit --data list.csv --out new", "list.csv"),
        (text("list.csv", "path,label\nphotos/test/cat/0.png,\n"), "vision fit --data list.csv --out new", "label"),
        (text("list.csv", "path,label\n".encode("utf-16")), "vision fit --data list.csv --out new", "UTF-8"),
        (text("list.csv", "path;label\nphotos/test/cat/0.png;x\n"), "vision fit --data list.csv --out new", "one class"),
        (text("list.csv", "path,label,split\nphotos/test/cat/0.png,x,exam\n"), "vision fit --data list.csv --out new", "exam"),
    ],
    "options": [
        (nothing, f"{FIT} --dense.head pyramid", "has no effect on this run"),
        (nothing, f"{FIT} --galore.rank 2", "--galore is for --optimizer galore"),
        (nothing, f"{FIT} --video.attention joint", "--video is for clips"),
        (nothing, f"{FIT} --dataset photos", 'did you mean "--data"'),
        (nothing, "diffusion fit --data photos/train/cat --instance_data_dir x --out new", 'did you mean "--data"'),
    ],
    "numbers": [
        (nothing, f"{FIT} --lr 0,005", "--lr"),
        (nothing, f"{FIT} --lr \u22121e-3", "--lr"),
        (nothing, f"{FIT} --lr ''", "--lr"),
        (nothing, f"{FIT} --epochs ten", "--epochs"),
        (nothing, f"{FIT} --epochs 1.5", "--epochs"),
        (nothing, f"{FIT} --batch_size 0x10", "--batch_size"),
        (nothing, f"{FIT} --seed 99999999999999999999", "--seed"),
        (nothing, f"{FIT} --method.rank 8.5", "--method.rank"),
        (nothing, "vision predict --run run photos --top 0", "--top"),
    ],
    "names": [
        (nothing, "vision fit --data ~nobody/photos --out new", "/photos: check the path"),
        (nothing, "vision fit --data 'photos ' --out new", "photos"),
        (nothing, "vision fit --data '' --out new", "--data"),
        (nothing, "vision fit --data photos --out " + "n" * 300, "n" * 100),
        (nothing, f"{FIT} --method LoRA", 'did you mean "lora"'),
        (nothing, f"{FIT} --method 'lora\n'", "unknown method"),
        (nothing, f"{FIT} --backbone 'my model@none.safetensors'", "unknown backbone"),
        (nothing, "vision predict --run 'run 1' photos", "there is no run folder run 1"),
        (nothing, "clip fit --data photos --shots 1 --method taskres --template 'a photo' --out new", "{}"),
        (nothing, "diffusion fit --data photos/train/cat --placeholder 'two words' --out new", "two words"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "line", "words"),
    [
        pytest.param(*case, id=f"{group} {number}")
        for group, cases in CASES.items()
        for number, case in enumerate(cases)
    ],
)
def test_it_is_told_in_one_sentence(
    prepare, line: str, words: str, desk: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder)
    monkeypatch.chdir(folder)
    for config in ("run/config.yaml", "begun/config.yaml"):
        path = Path(config)
        moved = (
            path.read_text(encoding="utf-8").replace(str(desk), str(folder)).replace("out: run", f"out: {path.parent}")
        )
        path.write_text(moved, encoding="utf-8")
    prepare()
    program, *arguments = shlex.split(line)
    before = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert MAIN[program](arguments) == 2
    said = [each for each in capsys.readouterr().err.splitlines() if each.startswith(f"{program}_peft: ")]
    assert len(said) == 1 and words in said[0], said
    assert "Errno" not in said[0] and "Traceback" not in said[0]
    before.pop(folder / "begun/config.yaml", None)  # written again, with the same settings
    after = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert not (folder / "new").exists()
