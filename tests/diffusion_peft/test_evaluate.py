"""Runs judged: pictures drawn once, figures, table, report; what is wrong with what was asked."""

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from diffusion_peft import protocols
from diffusion_peft.commands.evaluate import evaluate
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import SHORT

HOW = {"prompts": ["{} b", "{} c"], "drift_prompts": ["b", "c"], "count": 2, "steps": 1, "scales": [0.0, 1.0],
       "image_features": "reference", "clip": "reference"}  # fmt: skip


@pytest.fixture(scope="module")
def judged(lora_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "out"
    evaluate(run=[str(lora_run)], out=str(out), **HOW)
    return out


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_what_is_written(judged: Path, lora_run: Path) -> None:
    results = json.loads((judged / "results.json").read_text())
    assert results["protocol"] == "dreambooth" and results["image_features"] == results["clip"] == "reference"
    base, run = results["runs"]
    assert base["method"] == "base" and base["prior_drift"] is None and run["prior_drift"] > 0
    assert base.get("drift") is None and run["drift"] > 0
    assert run["run"] == str(lora_run) and run["parameters"] > 0 and run["of"].endswith("toys0")
    for row in (base, run):
        assert 0 < row["diversity"] and -1 <= row["clip_t"] <= 1 and row["prompt_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert [row["method"] for row in results["methods"]] == [
        "base", "lora", "real pictures, the subject", "real pictures, other subjects",
    ]  # fmt: skip
    (limits,) = results["real"]
    assert limits["of"].endswith("toys0")
    assert limits["subject"]["ceiling"] < 1 and "floor" not in limits["subject"]  # no other subject to compare with
    (swept,) = results["scale_sweeps"]
    assert [row["scale"] for row in swept["scales"]] == [0.0, 1.0]
    rows = list(csv.DictReader((judged / "results.csv").open()))
    assert [row["method"] for row in rows] == ["base", "lora"]
    assert (judged / "table.md").read_text().count("\n") == 6
    page = (judged / "report.html").read_text()
    for heading in ("Methods", "Real pictures", "Training loss", "scale sweep", "Config"):
        assert heading in page


def test_pictures_are_those_of_sample_and_are_drawn_once(judged: Path, lora_run: Path, tmp_path: Path) -> None:
    kept = pictures(judged / "pictures")
    folders = {name.partition("/")[0].rpartition("-")[0] for name in kept}
    assert len(folders) == 2 and "base" in folders
    line = f"sample --run {lora_run} --count 2 --steps 1 --out {tmp_path} --prompt"
    assert main([*line.split(), "a <toy> b"]) == 0
    (drawn,) = [content for name, content in kept.items() if "a_toy_b" in name and name.endswith("-1.png")
                and content == (tmp_path / "00-1.png").read_bytes()]  # fmt: skip
    one = next((judged / "pictures").rglob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in (judged / "pictures").rglob("*.png") if path != one}
    one.unlink()
    assert main(["evaluate", "--config", str(judged)]) == 0
    assert pictures(judged / "pictures") == kept
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_adapter_gets_other_pictures(judged: Path, lora_run: Path) -> None:
    """A run that was trained again is drawn again."""
    file = lora_run / "adapter" / "unet" / "adapter.safetensors"
    content, kept = file.read_bytes(), pictures(judged / "pictures")
    try:
        header = {}
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            header = opened.metadata()
        save_file({key: value * 2 for key, value in load_file(file).items()}, file, header)
        evaluate(run=[str(lora_run)], out=str(judged), **HOW)
    finally:
        file.write_bytes(content)
    new = pictures(judged / "pictures").keys() - kept.keys()
    assert new and not any(name.startswith("base") for name in new)


def test_mistakes(lora_run: Path, sd15: str, toys: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def said(line: str) -> str:
        assert main(["evaluate", *line.split(), "--out", f"{tmp_path}/not"]) == 2
        assert not (tmp_path / "not").exists()
        return capsys.readouterr().err

    assert "there is no run folder" in said("--run nowhere")
    assert 'no protocol "dreambuth", did you mean "dreambooth"' in said(f"--run {lora_run} --protocol dreambuth")
    assert "--labels names 2 of 1 runs" in said(f"--run {lora_run} --labels a b")
    assert "--count must be 1 or more" in said(f"--run {lora_run} --count 0")
    assert "needs {} once" in said(f"--run {lora_run} --prompts dog")
    assert main(["evaluate", "--run", str(lora_run), f"{lora_run}/../lora2"]) == 2
    assert "several runs need --out" in capsys.readouterr().err
    captioned = tmp_path / "style"
    fit(data=toys, base=sd15, prompt="toy", recipe="text_to_image", out=str(captioned), **SHORT | {"sample_count": 0})
    assert "what is toy of" in said(f"--run {captioned}")
    (captioned / "results.json").unlink()
    assert "is not finished" in said(f"--run {captioned} --class_name ball")


def test_a_protocol_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_run: Path) -> None:
    text = (
        'ABOUT = "obeys"\ndef suits(config):\n    return config["method"]["name"] == "lora" and config["lr"] == 0.5\n'
    )
    (tmp_path / "a_toy.py").write_text(text)
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    assert protocols.list_protocols().items() >= {"a_toy": "obeys", "dreambooth": protocols.dreambooth.ABOUT}.items()
    assert protocols.find_protocol(None, [lora_run])[0] == "dreambooth"
    assert protocols.find_protocol("a_toy", [lora_run])[0] == "a_toy"
    monkeypatch.setattr(protocols.a_toy, "suits", lambda config: config["lr"] == 0.01)
    assert protocols.find_protocol(None, [lora_run])[0] == "a_toy"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text((lora_run / "config.yaml").read_text().replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(PeftError, match="is judged by a_toy and .*other by dreambooth: evaluate them apart"):
        protocols.find_protocol(None, [lora_run, other])
    (other / "config.yaml").write_text("command: diffusion_peft sweep\nmethod: {name: x}\nlr: 1\n")
    with pytest.raises(PeftError, match="no protocol suits"):
        protocols.find_protocol(None, [other])
