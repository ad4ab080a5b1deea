"""What the programs' training does for LoRA's relatives besides a step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peft_core.jobs.runs.load import load_run
from peft_core.parts.lowrank import LowRank
from tests.vision_peft.conftest import SMALL
from vision_peft.fit import fit


def run(data: str, backbone: str, out: Path, **method: Any) -> dict[str, Any]:
    return fit(data=data, backbone=backbone, out=str(out), method=method, **SMALL)


def test_gradients_change_before_the_step(small_data: str, tiny_backbone: str, tmp_path: Path) -> None:
    ups = []
    for rescale in (True, False):
        out = tmp_path / str(rescale)
        run(small_data, tiny_backbone, out, name="lora_fa", rank=2, alpha=4.0, rescale=rescale)
        weights = load_file(out / "adapter" / "adapter.safetensors")
        ups.append(torch.cat([value.flatten() for key, value in weights.items() if key.endswith(".B")]))
    assert ups[0].any() and not torch.allclose(ups[0], ups[1])


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "init": "eva", "rank": 2},
        {"name": "adalora", "rank": 3, "target_rank": 1, "t_final": 0.2},
        {"name": "auto_lora", "rank": 3, "search_epochs": 2, "search_lr": 0.05},
    ],
    ids=lambda method: method["name"],
)
def test_data_and_budgets(method: dict[str, Any], small_data: str, tiny_backbone: str, tmp_path: Path) -> None:
    results = run(small_data, tiny_backbone, tmp_path / "run", **method)
    model: Any = load_run(tmp_path / "run").model
    changes = [module for module in model.modules() if isinstance(module, LowRank)]
    assert sum(p.numel() for change in changes for p in change.parameters()) == results["parameters"]["inserted"]
    assert all(change.A.any() for change in changes)
    if method["name"] != "lora":
        assert sum(len(change.A) for change in changes) < 3 * len(changes)
