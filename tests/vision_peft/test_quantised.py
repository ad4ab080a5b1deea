"""Runs beside a backbone of few bits: trained, opened, scored and merged as they were made."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_core import load_run
from peft_core.errors import PeftError
from peft_core.kernels.quantised import packed_of
from peft_core.parts.quantised.packed import KEPT
from tests.vision_peft.conftest import SMALL
from vision_peft.fit import fit
from vision_peft.use import merge_
from vision_peft.use import test as score


@pytest.mark.parametrize(("kind", "method"), [("nf4", {"name": "loftq", "rank": 4}), ("int4", {"name": "peqa"})])
def test_a_run_beside_a_quantised_backbone(
    kind: str, method: dict, small_data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    out = tmp_path / "run"
    results = fit(data=small_data, out=str(out), quantize=kind, method=method, **SMALL)
    run = load_run(out)
    assert packed_of(run.model.get_submodule("blocks.0.mlp.fc1")) is not None
    assert packed_of(run.model.get_submodule("head")) is None
    assert not any(KEPT in module.__dict__ for module in run.model.modules())
    assert score(run=str(out))["accuracy"] == results["accuracy"]
    again = fit(data=small_data, out=str(out), quantize=kind, method=method, **SMALL)
    assert again["accuracy"] == results["accuracy"] and "quantize: " + kind in (out / "config.yaml").read_text(
        encoding="utf-8"
    )
    merge_(run=str(out), out=str(tmp_path / "merged.safetensors"))
    assert load_file(tmp_path / "merged.safetensors")["blocks.0.mlp.fc1.weight"].dtype == torch.float32
    capsys.readouterr()


def test_what_quantisation_cannot_carry_is_told_before_a_folder_is_made(small_data: str, tmp_path: Path) -> None:
    with pytest.raises(PeftError, match="quantised"):
        fit(data=small_data, out=str(tmp_path / "run"), quantize="int4", method="ssf", **SMALL)
    assert not (tmp_path / "run").exists()
