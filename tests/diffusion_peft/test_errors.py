"""Each mistake gets one sentence that says what is wrong and what to do."""

import pickle
import sys
from pathlib import Path

import pytest
import torch

from diffusion_peft.commands.main import main
from diffusion_peft.use.run import combine
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import draw_pictures


@pytest.fixture
def said(sd15: str, toys: str, balls: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    """What `fit` says about options that are wrong."""

    def fit(line: str, data: str = toys, **words: str) -> str:
        flags = [word for key, value in words.items() for word in (f"--{key}", value)]
        fixed = f"--out {tmp_path}/run --steps 1 --sample_count 0 --trainer.accelerator cpu --base {sd15} --data {data}"
        code = main(["fit", *fixed.split(), *line.format(balls=balls).split(), *flags])
        message = capsys.readouterr().err.strip()
        assert code == 2 and not (tmp_path / "run").exists(), message
        assert message.startswith("diffusion_peft: ") and message.endswith((".", ")"))
        return message

    return fit


def test_folders(said, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no picture in" in said("", str(tmp_path / "empty"))
    assert "there is no folder" in said("", "./nowhere")


def test_broken_pictures_are_all_listed(said, tmp_path: Path) -> None:
    folder = Path(draw_pictures(tmp_path / "broken", [(16, 16)] * 3))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "2.png").write_text("no picture")
    message = said("", str(folder), prompt="a toy")
    assert "2 of 3 pictures cannot be read" in message and "1.png" in message and "2.png" in message


def test_small_pictures_are_said_once(sd15: str, toys: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = (
        f"fit --base {sd15} --data {toys} --prompt toy --resolution 32 --out {tmp_path}/run --steps 1 --sample_count 0"
    )
    assert main(line.split()) == 0
    notes = [text for text in capsys.readouterr().err.splitlines() if "smaller than the training size" in text]
    assert notes == ["note: 3 of 3 pictures are smaller than the training size, 32 × 32 pixels, and are enlarged (the first "
                     "is 0.png, 16 × 16)"]  # fmt: skip


def test_captions(said, tmp_path: Path) -> None:
    folder = Path(draw_pictures(tmp_path / "some", [(16, 16)] * 2))
    (folder / "0.txt").write_text("a toy")
    assert "1 of 2 pictures" in (message := said("", str(folder))) and "(the first is 1.png)" in message
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "a toy"}\n{"file_name": "9.png", "text": "b"}\n'
    )
    assert "line 2 of" in (message := said("", str(folder))) and "names 9.png" in message
    (folder / "metadata.jsonl").write_text('{"file": "0.png"}\n')
    assert "must be like" in said("", str(folder))


def test_placeholders(said) -> None:
    assert 'the placeholder "b" is a word of the vocabulary already' in said("--placeholder b --initializer a")
    assert "one word without spaces" in said("--initializer a", placeholder="a dog")
    assert "does not have the placeholder <b> in it" in said("--placeholder <b> --initializer a", prompt="a dog")
    assert "needs --initializer WORD" in said("--placeholder <b>")
    assert "give the token with --placeholder" in said("--initializer b --prompt a")
    assert 'the initializer "dog" has 3 tokens but the placeholder has 1' in said("--placeholder <b> --initializer dog")
    assert "textual_inversion needs --placeholder" in said("--method textual_inversion --prompt a")
    assert "the placeholder of" in (message := said("--initializer a", placeholder=" ")) and "is empty" in message
    assert "the prompt of" in (message := said("", prompt="")) and "is empty" in message


def test_options_of_other_methods(said) -> None:
    assert "--control.condition has no effect on this run" in said("--method lora --control.condition canny --prompt a")


def test_long_prompts(said) -> None:
    assert "the prompt has 82 tokens" in said("", prompt="a" * 80)
    assert "the class prompt has 82 tokens" in said("--prompt a", class_prompt="b" * 80)
    assert "a sample prompt has 82 tokens" in said("--prompt a", sample_prompts="b" * 80)


def test_prior_pictures(said) -> None:
    message = said("--prior {balls} --prior_count 5", prompt="a", class_prompt="b")
    assert "holds 2 prior pictures but --prior_count asks for 5" in message
    assert "--prior needs --class_prompt" in said("--prior {balls} --prompt a")


def test_values(said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "multiples of 2: try 8" in said("--resolution 7 --prompt a")
    for option, value in {"ema": 1, "warmup": -1, "steps": 0, "lr": 0, "snr_gamma": -1}.items():
        assert f"--{option} must" in said(f"--{option} {value} --prompt a")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    assert "bitsandbytes" in said("--optimizer adamw8bit --prompt a")


def test_concept_lists(said, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    for content, words in {"{}": "must be a list like", '[{"data": "a", "promt": "b"}]': 'did you mean "prompt"',
                           "[": "is damaged, no JSON"}.items():  # fmt: skip
        file.write_text(content)
        assert words in said("", str(file))


def test_adapters_of_another_base(lora_run: Path, sdxl: str, tmp_path: Path) -> None:
    with pytest.raises(PeftError, match=r"was trained on Stable Diffusion 1\.x \(.*is Stable Diffusion XL"):
        combine([(str(lora_run), 1.0)], sdxl)
    main(["export", "--run", str(lora_run), "--format", "embeddings", "--out", f"{tmp_path}/toy.safetensors"])
    with pytest.raises(PeftError, match="has vectors of width 24, the text encoders of .* take 24, 16"):
        combine([(f"{tmp_path}/toy.safetensors", 1.0)], sdxl)


def test_use(lora_run: Path, sd15: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def said(line: str) -> str:
        assert main(line.split()) == 2
        return capsys.readouterr().err

    assert "there is no adapter nowhere" in said("sample --prompt a --adapter nowhere:0.5")
    assert "there is no adapter nowhere" in said("export --run nowhere --format kohya --out a.safetensors")
    assert "sample needs --run, --adapter or --base" in said("sample --prompt a")
    assert main(f"sample --run {lora_run} --prompt a --count 1 --steps 1 --out {tmp_path}/drawn".split()) == 0
    assert "note: no prompt has <toy> in it" in capsys.readouterr().err
    assert "the prompt has 79 tokens" in said(f"sample --run {lora_run} --prompt {'a' * 77}")
    assert 'did you mean "kohya"' in said(f"export --run {lora_run} --format kohia")
    assert "was trained with lora" in said(f"export --run {lora_run} --format custom_diffusion")
    assert "what is written is safetensors" in said(f"export --run {lora_run} --format kohya --out {tmp_path}/x.ckpt")
    (tmp_path / "taken").touch()
    assert "taken is a file: give --out a folder" in said(f"sample --run {lora_run} --prompt a --out {tmp_path}/taken")
    assert "give merge one of them" in said(
        f"merge --run {lora_run} --out {tmp_path}/a --into {tmp_path}/b.safetensors"
    )
    assert "join needs two runs" in said(f"join --run {lora_run} --out {tmp_path}/x")
    assert "is no Custom Diffusion run" in said(f"join --run {lora_run} {lora_run} --out {tmp_path}/x")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text(f"command: diffusion_peft fit\nbase: {sd15}\nclip_skip: 0\n")
    assert "has no adapter yet" in said(f"sample --run {tmp_path}/half --prompt a")


class Evil:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


def test_pickles(sd15: str, tmp_path: Path) -> None:
    old = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 24)}, "name": "<toy>", "step": 3}
    torch.save(old, tmp_path / "toy.pt")
    with pytest.raises(PeftError, match="is a pickle, which can run code"):
        combine([(f"{tmp_path}/toy.pt", 1.0)], sd15)
    run = combine([(f"{tmp_path}/toy.pt", 1.0)], sd15, allow_pickle=True)
    assert run.tokens == {"<toy>": 2} and torch.equal(run.vectors()["<toy>"][0], torch.ones(2, 24))
    torch.save({"<b>": torch.ones(24)}, tmp_path / "b.bin")
    assert combine([(f"{tmp_path}/b.bin", 1.0)], sd15, allow_pickle=True).tokens == {"<b>": 1}
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Evil(tmp_path / "made")}))
    with pytest.raises(PeftError, match="holds more than tensors|cannot be read"):
        combine([(f"{tmp_path}/evil.pt", 1.0)], sd15, allow_pickle=True)
    assert not (tmp_path / "made").exists()


def test_list(capsys: pytest.CaptureFixture) -> None:
    words = {"methods": "textual_inversion", "recipes": "dreambooth", "formats": "kohya", "protocols": "dreambooth"}
    for what, word in (words | {"sweeps": "subjects"}).items():
        assert main(["list", what]) == 0
        assert word in capsys.readouterr().out
