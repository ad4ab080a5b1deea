"""What earlier versions wrote still opens: adapters, run folders, configs, pickled models (`tests/old`).

They were written at commit c2038e1: `vision_peft fit --data digits --method.rank 1 --trainer.max_steps 1`, `clip_peft fit
--data digits --shots 1 --epochs 1`, `diffusion_peft fit --data world/subjects/0 --prompt "a toy" --method.rank 1 --steps 1
--sample_count 0`, and a timm ViT of one block adapted by LoRA and saved whole by `torch.save`.
"""

import shutil
from pathlib import Path

import pytest
import torch

from peft_core import load_run

OLD = Path(__file__).parent / "old"


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old run folder, at the path that its config names."""
    return Path(shutil.copytree(OLD / request.param, tmp_path / request.param))


@pytest.mark.parametrize("old", ["vision", "clip"], indirect=True)
def test_classifiers_predict(old: Path) -> None:
    run = load_run(old)
    (prediction,) = run.predict(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    assert run.class_names[3] in ("3", "three") and prediction.class_name in run.class_names
    assert prediction.probabilities.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("old", ["diffusion"], indirect=True)
def test_a_pipeline_draws(old: Path) -> None:
    from diffusion_peft.drawing.draw import Drawing

    ((picture,),) = load_run(old).sample("a toy", how=Drawing(steps=1))
    assert picture.size == (64, 64)


@pytest.mark.parametrize("old", ["vision", "clip", "diffusion"], indirect=True)
def test_a_finished_run_is_known_as_finished(
    old: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_peft.commands import main as clip
    from diffusion_peft.commands.main import main as diffusion
    from vision_peft.commands import main as vision

    monkeypatch.chdir(old.parent)
    main = {"vision": vision, "clip": clip, "diffusion": diffusion}[old.name]
    assert main(["fit", "--config", f"{old.name}/config.yaml"]) == 0
    assert f"{old.name} is finished already" in capsys.readouterr().out


def test_a_pickled_model_opens() -> None:
    model = torch.load(OLD / "adapted.pickle", weights_only=False)["model"]
    picture = torch.arange(3 * 16 * 16).float().view(1, 3, 16, 16) / 768
    with torch.no_grad():
        assert torch.allclose(model(picture), torch.tensor([[0.0063, 0.0251, -0.0293]]), atol=1e-4)
