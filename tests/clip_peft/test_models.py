"""Models by name, adapters on models, and what users get wrong."""

import json
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip_peft import OpenVocabulary, saved
from clip_peft.commands import main
from peft_core import PeftError
from peft_core.jobs.hub import open_clip_models as models
from peft_core.jobs.hub.open_clip_models import load_backbone, picture_fit
from tests.clip_peft.conftest import SHORT
from tests.clip_peft.models import NAMES, TEXT, VISION, clip, pictures, tokenizer


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_and_a_weight_file(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, about = load_backbone(backbone)
    assert about.input_size == (32, 32) and about.mean == open_clip.OPENAI_DATASET_MEAN and about.family == "tiny"
    assert tokens(["cat"]).shape == (1, 24) and model.dtype == torch.float32 if hasattr(model, "dtype") else True
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    by_file, _, about = load_backbone(f"tiny-clip@{backbone}/open_clip_model.safetensors")
    torch.testing.assert_close(by_file.encode_image(pictures()), model.encode_image(pictures()))
    assert about.architecture == "tiny-clip" and about.family == "open_clip_model.safetensors"
    wrong = {key: value for key, value in clip().state_dict().items() if key != "visual.proj"}
    save_file(wrong, tmp_path / "cut.safetensors")
    with pytest.raises(PeftError, match="open_clip cannot load tiny-clip@.*visual.proj"):
        load_backbone(f"tiny-clip@{tmp_path}/cut.safetensors")


def test_pictures_are_squashed_or_cropped_as_the_model_says(backbone: str) -> None:
    model, _, about = load_backbone(backbone)
    assert (picture_fit(model, about).mode, picture_fit(model, about).crop_pct) == ("crop", 1.0)
    model.visual.preprocess_cfg = {"resize_mode": "squash", "interpolation": "bilinear"}
    assert (picture_fit(model, about).mode, picture_fit(model, about).interpolation) == ("squash", "bilinear")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ViT-B-61/openai", 'unknown backbone "ViT-B-61", did you mean "ViT-B-16"?'),
        ("referense", 'unknown backbone "referense", did you mean "reference"?'),
        ("ViT-B-16/openi", 'ViT-B-16 has no weights "openi", did you mean "openai"? (it has: openai, laion400m_e31'),
        ("ViT-B-16", "ViT-B-16 needs the name of its weights, ViT-B-16/TAG (it has: openai"),
        ("./nowhere", "there is no model folder nowhere: check the path"),
        ("/tmp", "/tmp is no model folder: it needs open_clip_config.json and open_clip_model.safetensors"),
        ("ViT-B-16@w.pt", "w.pt is a pickle, which is never loaded: save the weights as .safetensors"),
        ("ViT-B-16@w.safetensors", "there is no weight file w.safetensors: check the path after ViT-B-16@"),
        ("ViT-B-16/openai", "the weights of ViT-B-16/openai are not on this machine"),
        ("hf-hub:owner/model", "the weights of hf-hub:owner/model are not on this machine"),
    ],
)
def test_names_of_models_that_are_wrong(spec: str, says: str, offline: None) -> None:
    with pytest.raises(PeftError) as error:
        load_backbone(spec)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_quickgelu_weights_on_a_plain_config(offline: None, capsys: pytest.CaptureFixture) -> None:
    for spec, warned in (
        ("ViT-B-16/openai", True),
        ("ViT-B-16-quickgelu/openai", False),
        ("ViT-B-16/laion400m_e31", False),
    ):
        with pytest.raises(PeftError):
            load_backbone(spec)
        note = "note: the weights openai were trained with QuickGELU, which ViT-B-16 does not have: it is turned on"
        assert (note in capsys.readouterr().err) is warned


def test_a_weight_file_does_not_say_its_activation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "weights.safetensors"
    file.touch()
    monkeypatch.setattr(models, "_made", lambda *args, **options: args[0])
    for architecture, told in (("ViT-B-16", True), ("ViT-B-16-quickgelu", False), ("ViT-B-16-SigLIP", False)):
        assert load_backbone(f"{architecture}@{file}") == architecture
        note = f"were trained with QuickGELU and need ViT-B-16-quickgelu@{file}"
        assert (note in capsys.readouterr().err) is told


def test_a_weight_file_takes_the_look_of_its_architectures_published_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "weights.safetensors"
    file.touch()
    monkeypatch.setattr(models, "_made", lambda *args, **options: options["force_preprocess_cfg"])
    one = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "resize_mode": "shortest"}
    assert load_backbone(f"MobileCLIP-S1@{file}") == one
    assert load_backbone(f"ViT-B-16-SigLIP@{file}")["mean"] == (0.5, 0.5, 0.5)
    assert "differ" not in capsys.readouterr().err
    assert "mean" not in load_backbone(f"ViT-L-14@{file}")  # LAION's first weights have another than OpenAI's
    assert "does not say its mean and std, in which ViT-L-14's published weights differ" in capsys.readouterr().err


def test_an_adapter_on_another_model(tmp_path: Path) -> None:
    names, folder = ["cat", "tench"], tmp_path / "adapter"
    saved.save(OpenVocabulary(clip(), "coop", names, tokenizer(), context=2), folder)
    whole = saved.load(clip(), folder, tokenizer(), ["a zebra", "an okapi", "a horse"])
    assert whole(pictures()).shape == (4, 3) and not whole.trainable()
    wider = clip(width=64)
    with pytest.raises(PeftError, match="was trained on another backbone: its number of frozen parameters is"):
        saved.load(wider, folder, tokenizer())
    with pytest.raises(
        PeftError, match=r"does not fit this model: context is \(2, 32\) in the file and \(2, 64\) here"
    ):
        saved.load(clip(width=64), folder, tokenizer(), force=True)
    other = clip()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with pytest.raises(PeftError, match="was trained on a backbone with other weights"):
        saved.load(other, folder, tokenizer())
    assert saved.load(other, folder, tokenizer(), force=True).class_names == tuple(names)


@pytest.mark.parametrize("method", ["tip_adapter", "taskres", "linear_probe"])
def test_what_belongs_to_its_classes_takes_no_others(method: str, tmp_path: Path) -> None:
    whole = OpenVocabulary(clip(), method, ["cat", "tench"], tokenizer())
    if method == "tip_adapter":
        whole.learner.remember(torch.randn(6, 16), torch.arange(6) % 2)
    saved.save(whole, tmp_path)
    assert torch.equal(saved.load(clip(), tmp_path, tokenizer())(pictures()), whole.eval()(pictures()))
    with pytest.raises(PeftError, match=f"{method} cannot name other classes, because"):
        saved.load(clip(), tmp_path, tokenizer(), ["cat", "zebra"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method.context", "30"], 'coop got context 30: a text of this model holds 24 tokens'),
        (["--method", "coopp"], 'unknown method "coopp", did you mean "coop"?'),
        (["--method.contxt", "3"], 'unknown option --method.contxt, did you mean "--method.context"?'),
        (["--shots", "-1"], "--shots must be 0 or more, not -1"),
        (["--classes", "old"], "--classes takes one of all, base, new"),
        (["--cache_views", "-1"], "cache_views must be 0 or more, not -1"),
        (["--lr", "0"], "lr must be above 0, not 0"),
        (["--recipe", "cop"], 'unknown recipe "cop", did you mean "coop"'),
        (["--template", "a photo"], "coop learns the words around a class name: leave --template out"),
        (["--method", "kgcoop", "--template", "a photo"], 'template "a photo" holds no {}'),
        (["--method", "kgcoop", "--template", " "], "--template is empty: write the text"),
        (["--augment", "crops"], "there is no augmentation 'crops'"),
        (["--backbone", "reference/openai"], "the reference model has its weights and takes no others"),
        (["--backbone", "ViT-B-16/openi"], 'did you mean "openai"?'),
        (["--data", "coop/oxford_pet"], "did you mean 'coop/oxford_pets'?"),
        (["--trainer.max_epoch", "3"], 'did you mean "--trainer.max_epochs"?'),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(
    words: list[str], says: str, backbone: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = ["fit", "--backbone", backbone, "--data", photos, "--method", "coop", "--out", str(tmp_path / "run")]
    line += ["--shots", "4"]
    assert main([*line, *words]) == 2
    *before, said = capsys.readouterr().err.splitlines()
    assert says in said and not (tmp_path / "run").exists()
    assert not before or before[0].startswith("data       colours: 66 pictures of 6 classes (")


def test_mistakes_with_a_run(coop_run: Path, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture, run = f"{photos}/test/red/0.png", str(coop_run)
    for line, says in (
        (["predict", picture, "--run", run, "--classes", "cat", "cat"], 'class name "cat" is there twice'),
        (["predict", picture, "--run", run, "--classes", "", "cat"], "class name number 1 is empty"),
        (["predict", picture, "--run", run, "--classes", "a " * 30, "cat"], "tokens too long for a text of 24"),
        (["predict", picture, "--run", run, "--top", "0"], "top must be 1 or more, not 0"),
        (["predict", f"{photos}/nothing.png", "--run", run], "there is no file or folder"),
        (["predict", picture, "--run", f"{run}s"], "there is no run folder"),
        (["test", "--run", run, "--data", "digits", "--split", "tests"], "--split takes one of test, val, train"),
        (
            ["export", "--run", run, "--out", str(tmp_path), "--what", "weight"],
            "takes a list, each one of weights, model, onnx",
        ),
    ):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, said


def test_few_pictures_are_told(backbone: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from clip_peft.fit import fit

    settings = SHORT | {"shots": 16, "epochs": 1, "cache_views": 1}
    results = fit(data=photos, backbone=backbone, method="zero_shot", out=str(tmp_path / "run"), **settings)
    note = "these classes have fewer than 16 pictures and train with what there is: black 6, blue 6, green 6"
    assert note in capsys.readouterr().err and note in results["notes"][0]


def test_a_run_on_names_alone_is_scored_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=2)
    with pytest.raises(PeftError, match="names no classes: it is no adapter of clip_peft"):
        folder = tmp_path / "plain"
        saved.write_adapter(folder, {"coop": whole.method}, whole.learner.state_dict(), whole.model)
        saved.load(clip(), folder, tokenizer())
