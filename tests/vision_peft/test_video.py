"""Image models on clips, VideoMAE's layout, and runs on clips from fit to predict."""

import json
from pathlib import Path

import pytest
import torch
from peft_data.video.clips import Clips
from peft_data.video.sampling import Sampling
from peft_data.world.motion import draw_clips
from peft_data.world_motion import write_mp4
from torch import nn

from peft_core import PeftError, adapt, count_parameters, disabled, load_run, merge
from peft_core.registry import make_method
from tests.tiny import MODELS, clip
from vision_peft import reference
from vision_peft.backbones import load_backbone
from vision_peft.commands import main
from vision_peft.fit import fit
from vision_peft.video.classified import Classified, as_video, timm_state
from vision_peft.video.joint import JointViT, make_joint
from vision_peft.video.views import over_views

SIZE = (32, 32)


def clips(count: int = 2, frames: int = 4) -> torch.Tensor:
    return torch.randn(count, frames, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["linear", "aim", "lora", "adaptformer", "ssf"])
def test_at_step_0_it_is_the_image_models_frame_average(method: str) -> None:
    hyper = {"aim": {"frames": 4}, "adaptformer": {"bottleneck": 8}}
    settings = make_method(method, **hyper.get(method, {}))
    stock, x = MODELS["vit"].model().eval(), clips()
    average = stock(x.flatten(0, 1)).unflatten(0, (2, 4)).mean(1)
    model = adapt(as_video(MODELS["vit"].model(), 4, SIZE, {}, settings), settings).eval()
    assert isinstance(model, Classified)
    torch.testing.assert_close(model(x), average, rtol=1e-5, atol=0.3 if method == "ssf" else 1e-5)
    assert count_parameters(model).head == 5 * 49


def test_st_adapter_averages_before_the_last_norm() -> None:
    stock, x = MODELS["vit"].model().eval(), clips()
    seen = stock.forward_intermediates(x.flatten(0, 1), norm=False, intermediates_only=True, return_prefix_tokens=True)
    class_tokens = seen[-1][1][:, 0].unflatten(0, (2, 4))
    first, behind = stock.head(stock.norm(class_tokens.mean(1))), stock.head(stock.norm(class_tokens)).mean(1)
    model = adapt(as_video(MODELS["vit"].model(), 4, SIZE, {}), "st_adapter", frames=4).eval()
    torch.testing.assert_close(model(x), first, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first, behind, atol=1e-5)
    with disabled(model):
        torch.testing.assert_close(model(x), behind, rtol=1e-5, atol=1e-5)
    old = adapt(as_video(MODELS["vit"].model(), 4, SIZE, {}), "st_adapter", frames=4, mean_first=False).eval()
    torch.testing.assert_close(old(x), behind, rtol=1e-5, atol=1e-5)
    frames = adapt(MODELS["vit"].model().eval(), "st_adapter", frames=4)  # frames that nobody averages
    torch.testing.assert_close(frames(x.flatten(0, 1)), stock(x.flatten(0, 1)))


def test_views_average_probabilities() -> None:
    model = as_video(MODELS["vit"].model(), 4, SIZE, {}).eval()
    views = clips(6).unflatten(0, (2, 3))
    mean = torch.stack([model(views[:, v]).softmax(-1) for v in range(3)]).mean(0)
    torch.testing.assert_close(model(views).softmax(-1), mean)
    torch.testing.assert_close(model(views), mean.log())
    assert torch.equal(over_views(model, views), model(views))


def test_open_clip_towers() -> None:
    tower = clip()().visual
    tower.proj = None
    model = Classified(tower, nn.Linear(64, 3))
    settings = make_method("aim", frames=4)
    before = model.eval()(clips())
    model = adapt(as_video(model, 4, SIZE, {"dropout": 0.5}, settings), settings).eval()
    torch.testing.assert_close(model(clips()), before, rtol=1e-4, atol=1e-5)
    assert model.drop.p == 0.5 and model(clips()[0]).shape == (4, 3)  # pictures go through it too


def test_reference_tower_by_its_name() -> None:
    model, about = load_backbone("open_clip:reference", 4)
    assert about.name == "open_clip:reference" and model(torch.zeros(1, 3, *about.input_size)).shape == (1, 4)
    assert count_parameters(adapt(model, "st_adapter", width=8)).inserted > 0


def test_joint_attention_sees_the_order_of_frames() -> None:
    model = make_joint(MODELS["vit"].model(), 4, SIZE, 2).eval()
    assert isinstance(model, JointViT) and model.pos_embed.shape == (1, 1 + 2 * 16, 48)
    x = clips()
    assert model(x).shape == (2, 5) and not torch.allclose(model(x), model(x.flip(1)), atol=1e-6)
    views = torch.stack((x, x.flip(1)), 1)
    mean = (model(x).softmax(-1) + model(x.flip(1)).softmax(-1)) / 2
    torch.testing.assert_close(model(views).softmax(-1), mean)
    n = count_parameters(adapt(model, "adaptformer", bottleneck=16))
    assert n.inserted == 3 * (2 * 48 * 16 + 48 + 16)


def test_frozen_patches_of_equal_frames_are_the_pictures() -> None:
    image = MODELS["vit"].model()
    picture, embed = clips()[:, 0], image.patch_embed
    still = picture[:, None].expand(-1, 4, -1, -1, -1)
    want = embed(picture)
    got = make_joint(image, 4, SIZE, 2).patch_embed(still).unflatten(1, (2, 16))
    torch.testing.assert_close(got, want[:, None].expand_as(got), rtol=1e-4, atol=1e-5)


def test_wrong_ways_to_run_on_clips() -> None:
    def video(method: str = "linear", frames: int = 4, **options):
        return as_video(MODELS["vit"].model(), frames, SIZE, options, make_method(method))

    with pytest.raises(PeftError, match="tubelet of 2 frames does not divide clips of 5"):
        video(frames=5, attention="joint")
    with pytest.raises(PeftError, match="clips have 4 frames but st_adapter is set to 8: give --method.frames 4 or"):
        video("st_adapter")
    with pytest.raises(PeftError, match="aim runs on frames folded into the batch, not"):
        video("aim", 8, attention="joint")
    with pytest.raises(PeftError, match="cannot attend to all frames at once"):
        as_video(MODELS["eva"].model(), 4, SIZE, {"attention": "joint"})
    with pytest.raises(PeftError, match="takes clips B 4 3 32 32, not"):
        video(attention="joint")(clips(frames=6))


# ---- runs ----------------------------------------------------------------------------------------------------------

SMALL = {"augment": "none", "lr": 5e-3, "batch_size": 8, "trainer": {"max_epochs": 2, "accelerator": "cpu"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Class folders train, val, test with 8 + 4 + 8 clips of two ways to move."""
    root = tmp_path_factory.mktemp("small") / "moves"
    for split, count in (("train", 8), ("val", 4), ("test", 8)):
        moving, labels = draw_clips("direction", split, 2 * count, 5, 40)
        for number, (frames, label) in enumerate(zip(moving, labels.tolist(), strict=True)):
            if label in (0, 2):
                write_mp4(root / split / ("right", "", "left")[label] / f"{number:02d}.mp4", frames[::2])
    return str(root)


@pytest.fixture(scope="module")
def run(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "st"
    data = {"name": folder, "frames": 4, "views": 2, "directional": True}
    fit(data=data, method={"name": "st_adapter", "width": 8, "frames": 4}, out=str(out), **SMALL)
    return out


def test_run_on_clips(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["pictures"] == {"train": 12, "test": 8} and results["evaluated_on"] == "test"
    assert results["clips"] == {
        "frames": 4, "kind": "uniform", "stride": 8, "views": 2, "crops": 1, "decoder": "pyav", "windows": "slowfast",
    }  # fmt: skip
    assert results["parameters"]["head"] == 2 * 97
    assert 'class="grid wide"' in (run / "report.html").read_text()  # strips of frames
    rows = (run / "predictions.csv").read_text().splitlines()
    assert len(rows) == 9 and rows[1].startswith("test/left/")


def test_predict_and_test_on_clips(run: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = next(Path(folder, "test", "left").iterdir())
    assert main(["predict", "--run", str(run), str(file), f"{folder}/val"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "path,class,probability" and lines[1].startswith(f"{file},") and len(lines) == 6
    accuracy = json.loads((run / "results.json").read_text())["accuracy"]
    assert main(["test", "--run", str(run)]) == 0
    assert f"accuracy {accuracy:.4f} on 8 " in capsys.readouterr().out
    (tmp_path / "no.mp4").write_text("words")
    assert main(["predict", "--run", str(run), str(tmp_path / "no.mp4")]) == 2
    assert "no.mp4 is no video that can be read" in capsys.readouterr().err
    assert main(["predict", "--run", str(run), f"{folder}/../nothing"]) == 2
    said = load_run(run).predict([str(file), torch.zeros(9, 3, 50, 60, dtype=torch.uint8)])
    assert len(said) == 2 and said[0].class_name in ("left", "right")


def test_joint_attention_from_the_command_line(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = f"fit --method adaptformer --data {folder} --data.frames 4 --video.attention joint --lr 5e-3 --batch_size 8"
    assert (
        main([*line.split(), "--out", f"{tmp_path}/run", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"])
        == 0
    )
    capsys.readouterr()
    file = next(Path(folder, "test", "right").iterdir())
    assert main(["predict", "--run", f"{tmp_path}/run", str(file)]) == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--method st_adapter --data.frames 4", "the clips have 4 frames but st_adapter is set to 8"),
        ("--video.attention joint --data.frames 3", "a tubelet of 2 frames does not divide clips of 3"),
        (
            "--data.directional true --augment flip",
            "use --augment augmix or crop or jitter or multi_scale or none or randaug_crop or randaug_four or timm_randaug_crop",
        ),
        ("--cache_prefix on", "the frames of a clip are drawn anew at every epoch"),
        ("--video.attention both", '--video.attention takes one of frames, joint, not "both"'),
        ("--data.sampling dens", '--data.sampling takes one of uniform, dense, not "dens"'),
    ],
)
def test_mistakes_on_clips(
    folder: str, tmp_path: Path, line: str, sentence: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(f"fit --data {folder} --out {tmp_path}/run {line}".split()) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_methods_of_clips_refuse_pictures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(f"fit --data digits --method aim --out {tmp_path}/run".split()) == 2
    assert "aim works on clips, and these are pictures" in capsys.readouterr().err


def test_tasks_are_not_drawn_from_clips(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(f"hyper_tuning --data {folder} --out {tmp_path}/made".split()) == 2
    assert "holds clips, and hyper_tuning draws tasks of pictures" in capsys.readouterr().err


def test_short_clips_are_said_once(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = f"fit --data {folder} --method linear --data.frames 10 --batch_size 8 --trainer.max_epochs 1"
    assert main([*line.split(), "--out", f"{tmp_path}/run", "--trainer.accelerator", "cpu"]) == 0
    assert capsys.readouterr().err.count("note: frames repeat in 12 of 12 clips") == 1


def test_merged_model_is_plain_timm() -> None:
    settings = make_method("lora", rank=2)
    model = adapt(as_video(reference.load(3), 4, (40, 40), {}), settings).eval()
    x = torch.randn(2, 4, 3, 40, 40)
    before = model(x)
    merge(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    plain = reference.load(3).eval()
    plain.load_state_dict(timm_state(model))
    torch.testing.assert_close(plain(x.flatten(0, 1)).unflatten(0, (2, 4)).mean(1), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(PeftError, match="joint attention over frames fit no timm model"):
        timm_state(make_joint(reference.load(3), 4, (40, 40), 2))


def test_merge_and_export_say_why_not(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["merge", "--run", str(run), "--out", f"{tmp_path}/m.safetensors"]) == 2
    assert "st_adapter cannot be merged: a convolution over frames" in capsys.readouterr().err
    assert main(["export", "--run", str(run), "--out", f"{tmp_path}/m.onnx"]) == 2
    assert "takes clips, and export writes models of pictures" in capsys.readouterr().err


def test_sampling_of_a_split_survives_joining() -> None:
    one = Clips([Path("a.mp4")], torch.zeros(1, dtype=torch.int64), sampling=Sampling(4), directional=True)
    both = one + one.subset([0])
    assert isinstance(both, Clips) and both.sampling.frames == 4 and both.directional and len(both) == 2


@pytest.mark.parametrize("recipe", ["motion", *(f"{data}/{m}" for data in ("k400", "hmdb51") for m in ("st_adapter", "aim")),
                                    "ssv2/st_adapter", "ssv2/aim", "ssv2/adaptformer", "hmdb51/adaptformer"])  # fmt: skip
def test_recipes_are_read(recipe: str) -> None:
    settings = fit.resolve([("", {"recipe": recipe, "data": {"name": "world/motion/order"}})])
    assert settings["recipe"] == recipe
    if "/" in recipe:
        method = settings["method"].build()
        assert method.name == recipe.partition("/")[2]
        assert settings["data"].options["frames"] == getattr(method, "frames", 8)
