"""BitDelta: signs and scales of a tuned model by their formula, and the command on a finished run."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from peft_core import PeftError, adapt, load_run, merge
from peft_core.lifecycle import own_grafts, parameter_groups
from peft_core.methods.quantised.bit_delta import BitDelta, Signed, distil, take
from tests.tiny import vit
from vision_peft.commands import main
from vision_peft.fit import fit


def test_signs_scales_and_the_rest_are_the_tuned_models() -> None:
    torch.manual_seed(0)
    stock = vit(depth=1)().double().eval()
    tuned = copy.deepcopy(stock)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        tuned.blocks[0].mlp.fc1.weight[0, 0] = stock.blocks[0].mlp.fc1.weight[0, 0]  # a difference of 0 counts as +
    expected = copy.deepcopy(tuned)
    with torch.no_grad():
        block, base = expected.blocks[0], stock.blocks[0]
        for one, other in (
            (block.attn.proj, base.attn.proj),
            (block.mlp.fc1, base.mlp.fc1),
            (block.mlp.fc2, base.mlp.fc2),
        ):
            difference = one.weight - other.weight
            one.weight.copy_(other.weight + difference.abs().mean() * ((difference >= 0).double() * 2 - 1))
        for one, other in zip(block.attn.qkv.weight.chunk(3), base.attn.qkv.weight.chunk(3), strict=True):
            difference = one - other
            one.copy_(other + difference.abs().mean() * ((difference >= 0).double() * 2 - 1))
    x, method = torch.randn(2, 3, 32, 32, dtype=torch.float64), BitDelta()
    model = adapt(stock, method).eval()
    with pytest.raises(PeftError, match="made of a finished run"):
        parameter_groups(model, 1e-3)
    take(model, method, tuned)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-10, atol=1e-12)
    scales = [change.scale.clone() for change in own_grafts(model, method, Signed)]
    losses = [F.mse_loss(model(x), tuned(x)).item()]
    distil(model, method, tuned, [x] * 30, 30, 1e-4)
    losses.append(F.mse_loss(model(x), tuned(x)).item())
    assert losses[1] < losses[0]
    assert all(not torch.equal(a, c.scale) for a, c in zip(scales, own_grafts(model, method, Signed), strict=True))
    y = model(x)
    torch.testing.assert_close(merge(model)(x), y, rtol=1e-10, atol=1e-12)


def test_another_run_is_told_apart(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bit_delta", "--run", str(short_run), "--out", str(tmp_path / "bits")]) == 2
    assert "was trained with lora: bit_delta is for classifiers" in capsys.readouterr().err
    assert main(["bit_delta", "--run", str(short_run), "--out", str(short_run)]) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_makes_a_run(tmp_path: Path, small_data: str, capsys: pytest.CaptureFixture) -> None:
    run, out = tmp_path / "full", tmp_path / "bits"
    small = {"recipe": "digits", "batch_size": 20, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    fit(data=small_data, out=str(run), method="full", lr=3e-4, **small)
    assert main(["bit_delta", "--run", str(run), "--out", str(out), "--steps", "2"]) == 0
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["bytes"]["after"] < found["bytes"]["before"] / 8
    capsys.readouterr()
    assert main(["test", "--run", str(out)]) == 0
    assert f"accuracy {found['accuracy']['after']:.4f}" in capsys.readouterr().out
    assert len(load_run(out).class_names) == 3
