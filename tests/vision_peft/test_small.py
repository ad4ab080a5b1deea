"""A run of structured pruning, merged: heads and channels are gone, and plain timm loads what is left by the printed lines."""

import json
import textwrap
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import safetensors.torch
import timm
import torch

from peft_core import load_run
from vision_peft.commands import main


def test_a_pruned_run_is_merged_into_a_small_model(
    small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, target = tmp_path / "run", tmp_path / "small.safetensors"
    line = ["fit", "--data", small_data, "--method", "lora_prune", "--method.every", "1", "--out", str(run)]
    assert main([*line, "--trainer.max_steps", "4", "--epochs", "4"]) == 0
    capsys.readouterr()
    assert main(["merge", "--run", str(run), "--out", str(target)]) == 0
    said = capsys.readouterr().out
    assert "are cut out: 1,141,347 parameters became 739,587" in said and "checkpoint_path" not in said
    lines = said[said.index("  model = ") :].rpartition("  names[")[0]
    known: dict[str, Any] = dict(timm=timm, torch=torch, safetensors=safetensors, json=json, PIL=PIL)
    exec(textwrap.dedent(lines), known)
    model, loaded = known["model"], load_run(run)
    x = torch.randn(2, 3, *loaded.fit.size)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), loaded.model(x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == 739_587
