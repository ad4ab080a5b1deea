"""Runs beside a CLIP model of few bits."""

from pathlib import Path

from clip_peft.export import merge_
from clip_peft.fit import fit
from clip_peft.use import report
from peft_core import load_run
from peft_core.jobs.hub.open_clip_models import load_backbone
from peft_core.kernels.quantised import packed_of
from tests.clip_peft.conftest import SHORT


def test_a_run_beside_a_quantised_model(photos: str, backbone: str, tmp_path: Path) -> None:
    stock = sum(p.numel() for p in load_backbone(backbone)[0].parameters())
    for method in ({"name": "lora", "rank": 2, "targets": ["q", "fc1"]}, {"name": "coop"}):
        out = tmp_path / method["name"]  # type: ignore[operator]
        results = fit(
            data=photos, backbone=backbone, out=str(out), quantize="int4", method=method, steps_per_shot=2, **SHORT
        )  # type: ignore[arg-type]
        assert results["parameters"]["total"] - results["parameters"]["inserted"] == stock
        model = load_run(out).model.model  # type: ignore[union-attr]
        assert packed_of(model.visual.transformer.resblocks[0].mlp.c_fc) is not None
        assert report(str(out), None, "test", "trained", cache=False, quiet=True)["accuracy"] == results["accuracy"]
    merge_(run=str(tmp_path / "lora"), out=str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "open_clip_model.safetensors").is_file()
