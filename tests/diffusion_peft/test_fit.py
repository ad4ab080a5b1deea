"""Training from pictures to a run folder."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.commands.sample import sample
from diffusion_peft.training.job import load_base
from peft_core.errors import PeftError
from tests import killed
from tests.diffusion_peft.conftest import SHORT

killed.preload(__name__, "diffusion_peft.training.job", "diffusers", "transformers.models.clip.modeling_clip")


def weights(run: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / part / "adapter.safetensors")


def test_run_folder(lora_run: Path) -> None:
    names = "adapter config.yaml curves.png last.ckpt metrics.csv report.html results.json samples"
    assert sorted(os.listdir(lora_run)) == names.split()
    assert sorted(os.listdir(lora_run / "adapter")) == ["text_encoder", "unet"]
    assert sorted(os.listdir(lora_run / "samples")) == ["final.png", "scales.png"]
    results = json.loads((lora_run / "results.json").read_text())
    assert results["kind"] == "sd1" and results["steps"] == 4 and results["pictures"] == {"train": 3, "prior": 2}
    assert results["tokens"] == {"<toy>": 2} and results["method"]["rank"] == 2
    counts = results["parameters"]
    assert counts["text_encoder"]["by_method"] == {"tokens": 48, "lora": 2 * 2 * 4 * 2 * 24}
    assert counts["inserted"] == counts["unet"]["inserted"] + counts["text_encoder"]["inserted"]
    rows = list(csv.DictReader((lora_run / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4] and all(float(row["loss"]) > 0 for row in rows)
    assert "data:image/png;base64," in (lora_run / "report.html").read_text()
    assert (lora_run / "last.ckpt").stat().st_size < 3e5  # the trainable part and the optimiser's, not the UNet


def test_finished_run_is_left_alone(lora_run: Path, capsys: pytest.CaptureFixture) -> None:
    killed.left_alone(main, lora_run, "loss", capsys)


def test_a_finished_run_notices_that_its_pictures_changed(lora_run: Path, capsys: pytest.CaptureFixture) -> None:
    settings = yaml.safe_load((lora_run / "config.yaml").read_text())
    for folder in (settings["data"], settings["prior"]):
        picture = min(Path(folder).iterdir())
        stat = picture.stat()
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        try:
            assert main(["fit", "--config", str(lora_run)]) == 2
        finally:
            os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert "is finished, but its data have changed since then" in capsys.readouterr().err
    assert main(["fit", "--config", str(lora_run)]) == 0


def test_config_runs_it_again(lora_run: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(lora_run), "--out", str(tmp_path / "again")]) == 0
    for name in ("adapter/unet/adapter.safetensors", "adapter/text_encoder/adapter.safetensors", "metrics.csv",
                 "samples/final.png"):  # fmt: skip
        assert (tmp_path / "again" / name).read_bytes() == (lora_run / name).read_bytes()


def test_recipes() -> None:
    def settings(line: str) -> dict:
        return fit.resolve(fit.read_line(f"--data here {line}".split()))

    assert settings("--prompt toy")["recipe"] == "dreambooth" and settings("--prompt toy")["lr"] == 5e-4
    assert settings("")["recipe"] == "text_to_image" and settings("")["snr_gamma"] == 5
    assert settings("--method textual_inversion")["recipe"] == "textual_inversion"
    for name in ("textual_inversion", "custom_diffusion"):
        assert settings(f"--recipe {name}")["method"].name == name
    assert settings("--method custom_diffusion --lr 1e-6")["lr"] == 1e-6


def train(settings: dict, die_at: int | None) -> None:
    from diffusion_peft.training import job

    job.FEWEST_STEPS = 6
    killed.die_at(die_at)
    fit(**settings)


def run(out: Path, die_at: int | None = None, **settings) -> int | None:
    return killed.exit_of(train, settings | {"out": str(out)}, die_at)


def test_killed_run_ends_with_the_same_bytes(sd15: str, toys: str, balls: str, tmp_path: Path) -> None:
    settings = dict(
        data=toys, base=sd15, method={"name": "lora", "rank": 2, "dropout": 0.1}, text_method={"name": "lora", "rank": 2},
        prompt="a <toy>", placeholder="<toy>", initializer="a", class_prompt="a ball", prior=balls, prior_count=2,
        lr=0.01, text_lr=0.001, ema=0.9, noise_offset=0.1, snr_gamma=5.0, caption_dropout=0.3, batch_size=2, steps=10,
        sample_count=1, sample_steps=1, sample_every=6, save_every=0.0, keep_every=5, cache="off",
        trainer={"accelerator": "cpu"},
    )  # fmt: skip
    assert run(tmp_path / "whole", **settings) == 0
    for step in (2, 7):  # in the first epoch of 6 steps, and in the second
        assert run(tmp_path / "killed", step, **settings) == -signal.SIGKILL
    assert run(tmp_path / "killed", **settings) == 0
    files = [
        path for path in sorted((tmp_path / "whole").rglob("*")) if path.suffix in (".safetensors", ".csv", ".png")
    ]
    names = [path.relative_to(tmp_path / "whole").as_posix() for path in files]
    assert {
        "adapter/text_encoder/adapter.safetensors",
        "snapshots/step5/adapter/unet/adapter.safetensors",
        "metrics.csv",
        "samples/000006.png",
        "samples/final.png",
    } <= {*names}
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_what_is_kept_on_the_way_is_a_run_of_its_own(sd15: str, toys: str, tmp_path: Path) -> None:
    settings = dict(data=toys, base=sd15, prompt="a toy", method={"name": "lora", "rank": 2}, lr=0.01) | SHORT
    fit(out=str(tmp_path / "long"), **settings | {"steps": 4}, keep_every=2)
    fit(out=str(tmp_path / "short"), **settings | {"steps": 2})
    kept = tmp_path / "long" / "snapshots"
    assert sorted(path.name for path in kept.iterdir()) == ["step2", "step4"]
    for one, other in ((kept / "step2", tmp_path / "short"), (kept / "step4", tmp_path / "long")):
        assert all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())
        mine, theirs = (json.loads((run / "results.json").read_text()) for run in (one, other))
        assert {key: mine[key] for key in ("steps", "loss", "parameters", "adapter_bytes")} == {
            key: theirs[key] for key in ("steps", "loss", "parameters", "adapter_bytes")
        }
    folder = sample(run=str(kept / "step2"), prompt=["a toy"], steps=1, count=1)
    assert folder == kept / "step2" / "drawn" and (folder / "grid.png").is_file()


def test_gradient_checkpointing_changes_nothing(sd15: str, toys: str, tmp_path: Path) -> None:
    settings = dict(data=toys, base=sd15, prompt="a toy", method={"name": "lora", "rank": 2}, lr=0.01) | SHORT
    fit(out=str(tmp_path / "plain"), **settings)
    fit(out=str(tmp_path / "less"), gradient_checkpointing=True, **settings)
    for key, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "less")[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["loha", "lokr", "oft", "ia3", "diff_fit", "bitfit"])
def test_methods(method: str, sd15: str, toys: str, tmp_path: Path) -> None:
    settings = SHORT | {"steps": 2, "sample_count": 0}
    results = fit(data=toys, base=sd15, prompt="a toy", method=method, lr=0.01, out=str(tmp_path / "run"), **settings)
    assert results["parameters"]["unet"]["inserted"] > 0


def test_sdxl_with_two_text_encoders(sdxl: str, toys: str, tmp_path: Path) -> None:
    results = fit(
        data=toys, base=sdxl, prompt="a <toy>", placeholder="<toy>", initializer="a", method={"name": "dora", "rank": 2},
        text_method={"name": "lora", "rank": 2}, out=str(tmp_path / "run"), lr=0.01, **SHORT,
    )  # fmt: skip
    blocks = {key.split(".layers.")[1][0] for key in weights(tmp_path / "run", "text_encoder") if ".layers." in key}
    assert blocks == {"0"}  # nobody reads what its last layer says
    assert results["parameters"]["text_encoder_2"]["by_method"] == {"tokens": 16, "dora": 2 * 2 * 4 * 2 * 16}


def test_half_precision_bases(sd15: str, toys: str, tmp_path: Path) -> None:
    settings = dict(data=toys, base=sd15, prompt="a toy", dtype="bfloat16", lr=0.01) | SHORT
    fit(out=str(tmp_path / "run"), method={"name": "lora", "rank": 2}, **settings)
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}
    assert any(value.abs().max() > 0 for key, value in weights(tmp_path / "run").items() if key.endswith(".B"))
    with pytest.raises(PeftError, match="would learn nothing"):
        fit(out=str(tmp_path / "not"), method="bitfit", **settings)
    assert not (tmp_path / "not").exists()


def test_prior_pictures_are_drawn_once(sd15: str, toys: str, tmp_path: Path) -> None:
    settings = dict(
        data=toys, base=sd15, prompt="a toy", class_prompt="a thing", prior_count=2, cache=str(tmp_path / "kept")
    )
    fit(out=str(tmp_path / "one"), **settings, **SHORT)
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "prior").rglob("*.png")}
    assert len(drawn) == 2
    fit(out=str(tmp_path / "two"), **settings | {"prior_count": 3}, **SHORT)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "prior").rglob("*.png")}
    assert len(after) == 3 and drawn.items() <= after.items()
    assert load_base(sd15).kind == "sd1"
