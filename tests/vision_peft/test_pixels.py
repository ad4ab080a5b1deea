"""Pixel prompts on classifiers: what they refuse, what stays as it is, and a run whose head is the pretrained one."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from peft_core import PeftError, adapt, lifecycle, load_run
from peft_core.lifecycle import Losses, Progress
from peft_core.parts.tokens.pixels import frame_of, resampling
from tests.tiny import MODELS, vit
from vision_peft.commands import main
from vision_peft.fit import fit
from vision_peft.methods.dam_vp import centres_of


def test_the_optimiser_of_the_head_leaves_evps_prompt_to_its_own_rule() -> None:
    model = adapt(MODELS["vit"].model().train(), "evp", border=4, rate=3.0)
    (method,) = [a.method for a in model.__dict__["_peft_record"].adaptations.values()]
    frame, optimizer = frame_of(model, method), torch.optim.AdamW(lifecycle.parameter_groups(model, 0.1, 0.1))
    MODELS["vit"](model).square().sum().backward()
    frame.prompt.data.fill_(0.5)
    optimizer.step()
    assert (frame.prompt == 0.5).all()
    length = frame.whole.grad.norm()
    share = frame.prompt.grad.norm() / length
    lifecycle.after_step(model, Progress(1, 2))
    torch.testing.assert_close((frame.prompt - 0.5).norm(), 3.0 * share)
    lifecycle.after_step(model, Progress(2, 2))  # no gradient, no step
    assert frame.whole.grad is None and model.double() is model and frame.whole.is_leaf
    torch.testing.assert_close((frame.prompt - 0.5).norm(), (3.0 * share).double())


def test_a_picture_shrinks_as_interpolation_does() -> None:
    x = torch.randn(2, 3, 40, 40)
    for how in ("bicubic", "bilinear"):
        small = torch.nn.functional.interpolate(x, (29, 29), mode=how, antialias=True)
        r = resampling(40, 29, how)
        torch.testing.assert_close(r @ x @ r.t(), small, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("evp", {"border": 16}, "a border of 16 pixels leaves nothing of 32 × 32: give less than 16"),
        ("evp", {"mean": (0.5,), "std": (0.5,)}, "give 3 numbers each"),
        ("ilm_vp", {}, "needs the number of classes"),
        ("ilm_vp", {"classes": 3}, "trains no head, and this model has none"),
    ],
)
def test_what_cannot_be_framed_is_told(name: str, settings: dict, sentence: str) -> None:
    model = MODELS["vit"].model()
    if "classes" in settings:
        model.reset_classifier(0)  # type: ignore[operator]
    with pytest.raises(PeftError, match=sentence):
        adapt(model, name, **settings)


def test_more_classes_than_the_model_knows_and_other_sizes_are_told() -> None:
    model = adapt(MODELS["vit"].model(), "ilm_vp", classes=9)
    (method,) = [a.method for a in model.__dict__["_peft_record"].adaptations.values()]
    with pytest.raises(PeftError, match="knows 5 classes, fewer than the task's 9"):
        MODELS["vit"](model)
    with pytest.raises(PeftError, match="made for pictures of 32 × 32 pixels, not of 16 × 16"):
        frame_of(model, method).before(torch.zeros(1, 3, 16, 16))
    with pytest.raises(PeftError, match="before each epoch call"):
        lifecycle.after_step(model, Progress(1, 2))


def test_dam_vp_gives_each_cluster_a_prompt_and_each_picture_its_own() -> None:
    model = adapt(MODELS["vit"].model().eval(), "dam_vp", border=4, threshold=1e-3, pictures=3)
    (method,) = [a.method for a in model.__dict__["_peft_record"].adaptations.values()]
    x = torch.randn(4, 3, 32, 32)
    lifecycle.prepare(model, Losses(lambda batch: model(batch).sum(), [x[:2], x[2:]]))
    frame = frame_of(model, method)
    assert frame.prompts.shape == (3, 3, 4 * 4 * 28) and (frame.prompts == frame.prompts[:1]).all()
    with torch.no_grad():
        frame.prompts.copy_(torch.arange(3.0)[:, None, None].expand_as(frame.prompts))
    corner = (frame.before(x) - x)[:3, 0, 0, 0]
    assert sorted(corner.round().tolist()) == [0, 1, 2]  # three pictures, three clusters
    assert torch.equal(centres_of(x[:1, 0, 0], 1.0), x[:1, 0, 0])  # one picture is a cluster
    other, y = adapt(vit(img_size=16)(), "lora"), frame.before(x)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    other.blocks[0].register_forward_hook(stop)  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt):
        other(torch.randn(1, 3, 16, 16))
    assert torch.equal(frame.before(x), y)  # its own model's features, not those of one that Ctrl-C ended


def test_the_command_makes_the_prompt_that_clusters_begin_with(
    tmp_path: Path, small_data: str, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "meta"
    few = ["--epochs", "1", "--turns", "2", "--batch_size", "24", "--threshold", "1e-3", "--pictures", "2"]
    assert main(["dam_vp", "--data", small_data, "--backbone", tiny_backbone, "--out", str(out), *few]) == 0
    prompt = load_file(out / "prompt.safetensors")["prompt"]
    card = json.loads((out / "prompt.json").read_text(encoding="utf-8"))
    assert card["clusters"] == [2] and card["steps"] == 2 and prompt.shape == (3, 160**2 - 118**2)

    def prepared(**settings: Any) -> Any:
        torch.manual_seed(1)
        model = timm.create_model("test_vit", num_classes=3)
        adapt(model, "dam_vp", threshold=1e-3, mean=(0.5,) * 3, std=(0.5,) * 3, **settings)
        x = torch.randn(2, 3, 160, 160)
        lifecycle.prepare(model, Losses(lambda batch: model(batch).sum(), [x]))
        (method,) = [a.method for a in model.__dict__["_peft_record"].adaptations.values()]
        assert method.as_trained(model).source is None
        return frame_of(model, method)

    frame = prepared(source=str(out))
    assert frame.prompts.shape[0] == 2 and (frame.prompts == prompt).all() and not (prepared().prompts == prompt).any()
    with pytest.raises(PeftError, match="take its border and size of pictures"):
        prepared(source=str(out), border=4)
    with pytest.raises(PeftError, match="holds no prompt .*: make one with `vision_peft dam_vp`"):
        prepared(source=str(tmp_path))
    assert main(["dam_vp", "--data", small_data, "--backbone", tiny_backbone, "--out", str(out)]) == 2
    assert "give --out another place" in capsys.readouterr().err


def test_a_run_without_a_new_head_maps_the_models_own_classes(small_data: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "vit.safetensors")
    backbone, quick = f"test_vit@{tmp_path / 'vit.safetensors'}", {"max_epochs": 1, "accelerator": "cpu"}
    with pytest.raises(PeftError, match=r"head.weight is \(7, 64\)"):
        fit(data=small_data, backbone=backbone, method="ilm_vp", out=str(tmp_path / "none"), trainer=quick)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    out = str(tmp_path / "run")
    results = fit(data=small_data, backbone=backbone, method="ilm_vp", out=out, recipe="digits", trainer=quick)
    count = results["parameters"]
    assert count["trainable"] == count["inserted"] and count["head"] == 65_000
    run = load_run(out)
    assert run.model(torch.zeros(1, 3, *run.fit.size)).shape == (1, 3) and (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", ["evp", "dam_vp"])
def test_a_frame_trains_in_front_of_clips_image_tower_alone(name: str) -> None:
    clip: Any = adapt(MODELS["clip"].model().train(), name, border=5, mean=(0.5,) * 3, std=(0.5,) * 3)
    (method,) = [a.method for a in clip.__dict__["_peft_record"].adaptations.values()]
    batch = MODELS["clip"].batch()
    (clip.encode_image(batch["image"]) @ clip.encode_text(batch["text"]).t()).square().sum().backward()
    trained = [key for key, p in clip.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(trained) == 1 and trained[0].startswith("visual.conv1.peft")
    before = frame_of(clip, method).pixels(batch["image"]).detach().clone()
    lifecycle.after_step(clip, Progress(1, 2))
    assert torch.equal(frame_of(clip, method).pixels(batch["image"]), before) == (name == "dam_vp")
