"""Each mistake on the command line gets one sentence and exit code 2."""

from pathlib import Path

import pytest

from vision_peft.commands import main

MISTAKES = {
    "": None,
    "fti": 'unknown command "fti", did you mean "fit"?',
    "fit": "fit needs --data (a name): see `fit --help`.",
    "fit --data digts": "there is no data set and no folder 'digts' (did you mean 'digits'?)",
    "fit --data ./nowhere": "there is no file or folder nowhere",
    "fit --data digits --method loar": 'unknown method "loar", did you mean "lora"?',
    "fit --data digits --method ./x.yaml": "x.yaml",
    "fit --data digits --backbone reference@x.safetensors": "the reference model has its weights and takes no others",
    "fit --data digits --backbone vit_bse_patch16_224": 'unknown backbone "vit_bse_patch16_224", did you mean',
    "fit --data digits --recipe vtb": 'unknown recipe "vtb", did you mean "vtab"?',
    "fit --data digits --config nope.yaml": "config file nope.yaml does not exist",
    "fit --data digits --lrr 1": 'unknown option --lrr, did you mean "--lr"?',
    "fit --data digits --learning-rate 1": 'unknown option --learning-rate, did you mean "--lr"?',
    "fit --data digits --num_train_epochs 1": 'did you mean "--epochs"?',
    "fit --data digits --dense.head pyramid": "--dense.head has no effect on this run",
    "fit --data digits --dense.size 64": "--dense is for tasks on feature maps (pixels, boxes)",
    "fit --data digits --mezo.eps 1e-2": "--mezo is for --optimizer mezo: leave it out.",
    "fit --data digits --video.attention joint": "--video is for clips",
    "predict --run RUN --runs RUN -- x.png": "and not both",
    "fit --data digits --method.rnk 1": 'unknown option --method.rnk, did you mean "--method.rank"? (its options of lora:',
    "fit --data digits --method vpt --method.rank 1": "unknown option --method.rank",
    "fit --data digits --data.shots 1": "unknown option --data.shots",
    "fit --data digits --trainer.max_epoch 1": 'unknown option --trainer.max_epoch, did you mean "--trainer.max_epochs"?',
    "fit --data digits --trainer.callbacks x": "unknown option --trainer.callbacks",
    "fit --data digits --lr fast": '--lr takes a number or find, not "fast".',
    "fit --data digits --lr": "--lr needs a value (a number or find).",
    "fit --data digits --seed 1.5": '--seed takes a whole number, not "1.5".',
    "fit --data digits --protocol honst": '--protocol takes one of honest, legacy, not "honst", did you mean "honest"?',
    "fit --data digits --compile yes": '"yes" belongs to no option',
    "fit --data digits stray": '"stray" belongs to no option',
    "fit --data digits --warmup 2": "warmup must be in [0, 1)",
    "fit --data digits --method.rank 0": "must be 1 or more",
    "fit --data digits --method.rank 500": "above the layer's width 96",
    "fit --data digits --method.targets q valu": 'no role "valu"',
    "fit --data digits --augment flp": "there is no augmentation 'flp' (did you mean 'flip'?)",
    "fit --data digits --trainer.accelerator tpu": "Lightning refuses the --trainer options",
    "fit --data digits --trainer.strategy ddp_spawn": "--trainer.strategy ddp_spawn loses",
    "fit --data digits --trainer.max_epochs 0": "training needs an end",
    "fit --data digits --trainer.max_epochs -1": "training needs an end",
    "fit --data digits --out /dev/null": "/dev/null is a file: give --out another folder.",
    "fit --data digits --protocol legacy --eval_on val": "it goes with --eval_on test only",
    "predict x.png": "predict needs --run",
    "predict --run nowhere x.png": "there is no run folder nowhere",
    "predict --run RUN": "predict needs pictures",
    "predict --run RUN nowhere.png": "there is no file or folder nowhere.png",
    "predict --run EMPTY x.png": "is no run folder: it has no config.yaml",
    "test --run RUN --split vla": '--split takes one of test, val, train, not "vla", did you mean "val"?',
    "merge --run RUN --out m.pt": "--out m.pt must end in .safetensors",
    "export --run RUN --out m.pt": "--out m.pt must end in .onnx",
    "list method": 'list takes one of methods, data, backbones, recipes, sweeps, not "method", did you mean "methods"?',
    "list": "list needs what",
}


@pytest.mark.parametrize("line", [line for line in MISTAKES if line])
def test_sentence(line: str, short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    words = line.replace("RUN", str(short_run)).replace("EMPTY", str(tmp_path / "empty")).split()
    assert main(words) == 2
    said = capsys.readouterr()
    assert MISTAKES[line] in said.err
    assert len(said.err.splitlines()) == 1 and "Traceback" not in said.err and "usage" not in said.err
    assert not said.out and [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_mistakes_in_a_config_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for text, sentence in {
        "lrr: 1": f'unknown option "lrr" in {tmp_path}/c.yaml, did you mean "lr"?',
        "lr: fast": f'lr in {tmp_path}/c.yaml takes a number or find, not "fast".',
        "method: {name: lora, rnk: 3}": f'unknown option "method.rnk" in {tmp_path}/c.yaml, did you mean "method.rank"?',
        "lr: [": "is no readable YAML",
        "- a": "must hold `option: value` lines",
        "command: clip_peft sweep": "is a config of `clip_peft sweep`, not of `vision_peft fit`",
    }.items():
        (tmp_path / "c.yaml").write_text(text)
        assert main(["fit", "--data", "digits", "--config", str(tmp_path / "c.yaml")]) == 2
        assert sentence in capsys.readouterr().err


def test_debug_shows_where() -> None:
    with pytest.raises(ValueError, match="unknown method"):
        main("fit --data digits --method loar --debug".split())


def test_damaged_adapters(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import shutil

    shutil.copytree(short_run, tmp_path / "run")
    weights = tmp_path / "run" / "adapter" / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert main(["test", "--run", str(tmp_path / "run")]) == 2
    assert "truncated or no safetensors file" in capsys.readouterr().err
    weights.unlink()
    assert main(["test", "--run", str(tmp_path / "run")]) == 2
    assert "it has no adapter.safetensors" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert main(["test", "--run", str(tmp_path / "run")]) == 2
    assert "has no adapter yet: give its `vision_peft fit` again" in capsys.readouterr().err
