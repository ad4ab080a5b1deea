"""Controls from pairs to a run folder, and such runs in use: sample, export, evaluate."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

import peft_core
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.use.run import combine
from peft_core.errors import PeftError
from tests.diffusion_peft import test_fit
from tests.diffusion_peft.conftest import draw_pictures
from tests.diffusion_peft.files import differs
from tests.diffusion_peft.test_use import drawn

SHORT: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "sample_count": 1, "sample_steps": 1, "lr": 0.02, "trainer": {"accelerator": "cpu"},
}  # fmt: skip
HYPER: dict[str, dict[str, Any]] = {"controlnext": {"width": 8}, "control_lora": {"rank": 2}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    draw_pictures(folder / "images", [(8, 8)] * 4)
    draw_pictures(folder / "conditions", [(8, 8)] * 4, seed=1)
    for number in range(4):
        box = {"boxes": [[0.0, 0.1, 0.5, 0.9]], "phrases": ["a dog"]}
        (folder / "conditions" / f"{number}.json").write_text(json.dumps(box))
        (folder / "images" / f"{number}.txt").write_text("a picture")
    return folder


def trained(base: str, pairs: Path, out: Path, method: str, condition: str = "depth", **more: Any) -> dict[str, Any]:
    control = {"condition": condition, "image_encoder": "reference"}
    return fit(data=str(pairs), base=base, method={"name": method} | HYPER.get(method, {}), control=control, out=str(out),
               **SHORT | more)  # fmt: skip


@pytest.fixture(scope="module")
def controlnet(sd15: str, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("controls") / "controlnet"
    trained(sd15, pairs, out, "controlnet")
    return out


def test_run_folder(controlnet: Path) -> None:
    results = json.loads((controlnet / "results.json").read_text())
    assert results["effect"]["change"] > 0 and results["effect"]["open"] > 0 and results["pictures"]["train"] == 4
    card = json.loads((controlnet / "adapter" / "unet" / "adapter.json").read_text())
    assert card["adaptations"][0]["settings"]["shrink"] == 1
    rows = list(csv.DictReader((controlnet / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["change"]] == ["1", "2", "3"]
    assert float(rows[0]["change"]) > 0  # after the first step zero convolutions are open
    report = (controlnet / "report.html").read_text()
    assert "What the branch does" in report and "condition" in report and "real" in report
    assert Image.open(controlnet / "samples" / "final.png").size == (3 * 8 + 4, 4 * 8 + 6)  # condition, sample, real


@pytest.mark.parametrize("method, condition", [("t2i_adapter", "mask"), ("ip_adapter", "picture"), ("gligen", "box")])
def test_other_methods(method: str, condition: str, sd15: str, pairs: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"early": True} if method == "t2i_adapter" else {"drop": 0.5, "until": 0.5}
    control = {"condition": condition, "image_encoder": "reference"} | more
    results = fit(data=str(pairs), base=sd15, method=method, control=control, out=str(tmp_path / "run"), **SHORT)
    assert results["effect"]["change"] > 0
    file = pairs / "conditions" / ("0.json" if condition == "box" else "0.png")
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"sample --run {tmp_path}/run --condition FILE --prompt" in report
    line = f"sample --run {tmp_path}/run --condition {file} --prompt cat --count 1 --steps 2 --out {tmp_path}/drawn"
    assert main(line.split()) == 0 and (tmp_path / "drawn" / "00-0.png").is_file()
    assert main(f"export --run {tmp_path}/run --format control --out {tmp_path}/files".split()) == 0


@pytest.mark.slow  # test_fit.py kills a run, test_control_state.py has what a control's state holds
def test_killed_run_ends_with_the_same_bytes(sd15: str, pairs: Path, tmp_path: Path) -> None:
    settings = dict(
        data=str(pairs), base=sd15, method={"name": "control_lora", "rank": 2}, control={"condition": "depth", "drop": 0.3},
        cache="off", save_every=0.0, ema=0.9, **SHORT | {"steps": 8},
    )  # fmt: skip
    assert test_fit.run(tmp_path / "whole", **settings) == 0
    assert test_fit.run(tmp_path / "killed", 2, **settings) == -signal.SIGKILL
    assert test_fit.run(tmp_path / "killed", **settings) == 0
    for name in ("adapter/unet/adapter.safetensors", "metrics.csv", "samples/final.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_sample_is_what_the_report_shows(controlnet: Path, pairs: Path, tmp_path: Path) -> None:
    line = (
        f"sample --run {controlnet} --condition {pairs}/conditions/0.png --count 1 --steps 1 --out {tmp_path} --prompt"
    )
    assert main([*line.split(), "a picture"]) == 0
    sheet = Image.open(controlnet / "samples" / "final.png")
    assert sheet.crop((10, 0, 18, 8)).tobytes() == Image.open(tmp_path / "00-0.png").tobytes()


def test_export_and_stock_pipeline(controlnet: Path, sd15: str, pairs: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    assert main(f"export --run {controlnet} --format control --out {tmp_path}".split()) == 0
    with quiet_loading():
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(
            sd15, controlnet=ControlNetModel.from_pretrained(tmp_path), safety_checker=None
        )
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.open(pairs / "conditions" / "0.png")
    generator = torch.Generator().manual_seed(3)
    theirs = pipeline("a cat", image=picture, num_inference_steps=2, guidance_scale=4.0, generator=generator,
                      output_type="pt").images  # fmt: skip
    run = peft_core.load_run(controlnet)
    run.before([[picture]], Drawing(2))(range(1))
    torch.testing.assert_close(drawn(run.base.pipeline(), "a cat"), theirs, rtol=0, atol=1e-5)
    run.set_scale(0.0)
    assert differs(drawn(run.base.pipeline(), "a cat"), theirs)


def test_controls_compose(controlnet: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one, two = (f"{pairs}/conditions/{number}.png" for number in (0, 1))
    line = f"sample --control {controlnet}:1.0 --control {controlnet}:0.6 --prompt cat --count 1 --steps 1 --out {tmp_path}/"
    assert main(f"{line}both --condition {one} {two}".split()) == 0
    run = combine([(str(controlnet), 1.0), (str(controlnet), 0.6)])
    pictures = [Image.open(file) for file in (one, two)]
    x, hidden = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24)
    seen = []
    for second in pictures:
        run.before([[pictures[0]], [second]], Drawing(2))(range(1))
        with torch.no_grad():
            seen.append(run.unet(x, 500, hidden).sample)
    assert len(run.controls) == 2 and not torch.equal(*seen)
    capsys.readouterr()
    assert main(f"{line}not --condition {one}".split()) == 2
    assert "these runs draw under depth and depth, and 1 conditions came" in capsys.readouterr().err
    Image.new("RGB", (16, 8)).save(tmp_path / "wide.png")
    assert main(f"{line}not --condition {one} {tmp_path}/wide.png".split()) == 2
    assert "the condition is 16 × 8 pixels, and pictures are drawn 8 × 8" in capsys.readouterr().err


def test_mistakes(sd15: str, sdxl: str, controlnet: Path, pairs: Path, toys: str, tmp_path: Path) -> None:
    def said(method: Any, condition: str, **more: Any) -> str:
        given = {"data": str(pairs), "base": sd15, "method": method, "out": f"{tmp_path}/run"} | SHORT
        given["control"] = {"condition": condition} | more.pop("control", {})
        with pytest.raises(PeftError) as error:
            fit(**given | more)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "controlnet cannot take the condition box" in said("controlnet", "box")
    assert "gligen cannot take the condition depth" in said("gligen", "depth")
    assert "1 or 3 channels, not 2" in said({"name": "controlnet", "channels": 2}, "depth")
    assert "no use for --placeholder" in said("t2i_adapter", "depth", placeholder="<a>")
    assert "--control.drop must be in [0, 1]" in said("t2i_adapter", "depth", control={"drop": 2.0})
    assert "have no caption" in said("controlnet", "depth", data=str(silent(tmp_path)))
    assert "--compile cannot follow" in said("controlnet", "depth", compile=True)
    with pytest.raises(PeftError, match=r"was trained on Stable Diffusion 1\.x \(.*is Stable Diffusion XL"):
        combine([(str(controlnet), 1.0)], sdxl)


def test_recipes() -> None:
    def settings(line: str) -> dict[str, Any]:
        return fit.resolve(fit.read_line(f"--data world/control/canny {line}".split()))

    assert settings("--method controlnet")["lr"] == 1e-5 and settings("--method controlnet")["recipe"] == "control"
    assert settings("--method t2i_adapter")["control"].options == {"early": True}
    gligen = settings("--method gligen --control.until 0.4")
    assert gligen["ema"] == 0.9999 and gligen["control"].options == {"drop": 0.1, "until": 0.4}


def silent(folder: Path) -> Path:
    draw_pictures(folder / "silent" / "images", [(8, 8)])
    return folder / "silent"


def test_sdxl(sdxl: str, pairs: Path, tmp_path: Path) -> None:
    results = trained(sdxl, pairs, tmp_path / "run", "controlnet", sample_count=0)
    assert results["kind"] == "sdxl" and results["effect"]["change"] > 0


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs of the drawn world, few that are asked about, and a detector that has hardly learnt."""
    from peft_data.world import control

    from diffusion_peft.evaluation import watcher
    from diffusion_peft.protocols import control as protocol

    monkeypatch.setattr(control, "COUNTS", {"train": 4, "test": 4})
    monkeypatch.setattr(control, "BLOCK", 4)
    monkeypatch.setattr(watcher, "SCENES", 4)
    monkeypatch.setattr(watcher, "STEPS", 2)
    monkeypatch.setattr(protocol, "CONDITIONS", 3)
    monkeypatch.setattr(watcher.train_watcher, "__defaults__", (2, 0))


@pytest.mark.usefixtures("small_world")
def test_evaluate_on_the_drawn_world(sd15: str, tmp_path: Path) -> None:
    from diffusion_peft.protocols import control as protocol

    fit(data="world/control/canny", base=sd15, method="t2i_adapter", out=str(tmp_path / "run"), **SHORT)
    assert main(f"evaluate --run {tmp_path}/run --count 1 --steps 1".split()) == 0
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert results["protocol"] == "control"
    base, real, own = ({row["method"]: row for row in results["methods"]}[name]
                       for name in (protocol.BASE, protocol.REAL, "t2i_adapter, canny"))  # fmt: skip
    assert real["similarity"] == pytest.approx(1.0, abs=1e-4) and own["parameters"] > 0
    for key in ("edge_f1", "edge_ssim", "miou", "thing_iou", "depth_rmse", "box_ap", "clip_t"):
        assert all(row[key] is not None for row in (base, real, own))
    assert not any(protocol.WORDLESS in row["method"] for row in results["methods"])


@pytest.mark.slow  # the same evaluation, of the one condition that needs no words
@pytest.mark.usefixtures("small_world")
def test_pictures_as_prompts_are_judged_without_words_too(sd15: str, tmp_path: Path) -> None:
    from diffusion_peft.protocols import control as protocol

    fit(data="world/control/picture", base=sd15, method="ip_adapter", out=str(tmp_path / "run"), **SHORT)
    assert main(f"evaluate --run {tmp_path}/run --count 2 --steps 1".split()) == 0
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    rows = {row["method"]: row for row in results["methods"]}
    own = "ip_adapter, picture"
    wordless = {protocol.BASE + protocol.WORDLESS, own + protocol.WORDLESS}
    assert rows.keys() == {protocol.BASE, protocol.REAL, own} | wordless
    assert all(rows[name]["similarity"] is not None for name in rows)
    assert results["headline"].startswith(f"{own}{protocol.WORDLESS} obeys most: similarity")
    drawn = list((tmp_path / "run" / "evaluation" / "pictures").rglob("*.png"))
    assert len(drawn) == 2 * 2 * 3 * 2 and sum(file.name.startswith("-") for file in drawn) == 2 * 3 * 2
