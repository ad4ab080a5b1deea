"""LoRA files of transformers: diffusers', PEFT's and kohya's names, and what is said of files for another family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_peft.base.families import of_kind
from diffusion_peft.files.fused import spots_of
from diffusion_peft.formats import export_adapter, import_adapter
from peft_core import adapt
from peft_core.errors import PeftError
from tests.diffusion_peft.pipelines import stable_diffusion, train
from tests.diffusion_peft.transformers import pipeline
from tests.parity.golden import values
from tests.parity.test_flow import POOLED, WORDS

GOLDEN = Path(__file__).parent.parent / "parity" / "golden" / "comfyui_names.json"
"""diffusers' path -> ComfyUI's name, first row of it, whether its halves are swapped: its `flux_to_diffusers` (hidden_size 32,
one block of each kind) and `mmdit_to_diffusers` (depth 2, blocks of 32)."""


def said(kind: str, model: Any) -> Tensor:
    channels = {"flux2": 64, "sana": 4}.get(kind, 16)
    x = values("x", (1, channels, 4, 4)).float()
    words = {"hidden": values("hidden", (1, 7, WORDS[kind])).float(), "mask": torch.ones(1, 7)}
    if kind in POOLED:
        words["pooled"] = values("pooled", (1, POOLED[kind])).float()
    told = 3.5 if model.config.get("guidance_embeds") else None
    with torch.no_grad():
        return of_kind(kind).predict(model, x, torch.tensor([0.4]), told, **words)


def trained(kind: str, **settings: Any) -> tuple[Any, Tensor]:
    made = pipeline(kind)
    plain = said(kind, made.transformer)
    adapt(made.transformer, **({"method": "lora", "rank": 2, "alpha": 3.0} | settings))
    train(made.transformer)
    wanted = said(kind, made.transformer)
    assert (wanted - plain).abs().max() > 1e-3
    return made, wanted


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "flux", "flux2", "z_image", "qwen_image", "sana", "lumina2"])
def test_diffusers_files_load_in_the_stock_pipeline_and_here(kind: str, tmp_path: Path) -> None:
    made, wanted = trained(kind)
    file = export_adapter(made.transformer, None, tmp_path, "diffusers_lora")
    keys = load_file(file)
    assert all(key.startswith("transformer.") and key.endswith(("lora_A.weight", "lora_B.weight")) for key in keys)
    stock = pipeline(kind)
    stock.load_lora_weights(str(tmp_path))
    close(said(kind, stock.transformer), wanted)
    fresh = pipeline(kind)
    imported = import_adapter(fresh.transformer, None, file)
    assert imported.matched == {"transformer": len(keys) // 2} and not imported.unmatched
    close(said(kind, fresh.transformer), wanted)


@pytest.mark.parametrize("kind, targets", [("sd3", ("attn", "mlp", "norm1_context")), ("flux", ("attn", "mlp"))])
def test_kohya_files_have_their_authors_names(kind: str, targets: Any, tmp_path: Path) -> None:
    made, wanted = trained(kind, targets=targets[:2])
    file = export_adapter(made.transformer, None, tmp_path, "kohya")
    names = {key.partition(".")[0].removeprefix("lora_unet_") for key in load_file(file)}
    golden = {name.replace(".", "_") for name, *_ in json.loads(GOLDEN.read_text(encoding="utf-8"))[kind].values()}
    assert names <= golden and any(name.endswith(("qkv", "linear1")) for name in names)
    fresh = pipeline(kind)
    assert not import_adapter(fresh.transformer, None, file).unmatched
    close(said(kind, fresh.transformer), wanted)


def test_stock_diffusers_reads_what_is_written_for_kohya(tmp_path: Path) -> None:
    """Of double blocks: it knows single ones of the real width alone."""
    made, wanted = trained("flux", blocks=[0])
    export_adapter(made.transformer, None, tmp_path, "kohya")
    stock = pipeline("flux")
    stock.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    close(said("flux", stock.transformer), wanted)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_names_and_rows_are_comfyuis(kind: str) -> None:
    model = pipeline(kind).transformer
    spots = spots_of(model, *of_kind(kind).original(model))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[kind]
    paths = {path for path, module in model.named_modules() if hasattr(module, "weight")}
    assert spots.keys() == golden.keys() & paths
    for path, spot in spots.items():
        name, start, swapped = golden[path]
        assert (spot.name, spot.start, spot.swapped) == (name, start or 0, swapped), path


@pytest.mark.parametrize("kind", ["loha", "lokr", "full"])
def test_other_kinds_of_changes_of_fused_modules_are_read(kind: str, tmp_path: Path) -> None:
    """What LyCORIS trains on qkv, in rows of it."""
    model = pipeline("flux").transformer
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance) * 0.1

    name = "lora_unet_double_blocks_0_img_attn_qkv"
    change = drawn(96, 32)
    entries = {"diff": change}
    if kind == "loha":
        entries = {
            "hada_w1_a": drawn(96, 2),
            "hada_w1_b": drawn(2, 32),
            "hada_w2_a": drawn(96, 2),
            "hada_w2_b": drawn(2, 32),
        }
        w1, w2 = (entries[f"hada_w{n}_a"] @ entries[f"hada_w{n}_b"] for n in (1, 2))
        change = w1 * w2
    elif kind == "lokr":
        entries = {"lokr_w1": drawn(4, 4), "lokr_w2": drawn(24, 8)}
        change = torch.kron(entries["lokr_w1"], entries["lokr_w2"])
    attention = model.transformer_blocks[0].attn
    before = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]).detach().clone()
    save_file({f"{name}.{key}": value for key, value in entries.items()}, tmp_path / "odd.safetensors")
    imported = import_adapter(model, None, tmp_path / "odd.safetensors")
    assert imported.matched == {"transformer": 3}
    from peft_core import merge

    merge(model)
    after = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    close(after - before, change)


def test_a_file_of_another_family_is_told_by_its_keys(tmp_path: Path) -> None:
    files = {}
    for kind, settings in (("flux", {}), ("z_image", {}), ("sd3", {"targets": ("attn", "mlp", "context_fc1")})):
        made, _ = trained(kind, **settings)
        files[kind] = export_adapter(made.transformer, None, tmp_path / kind, "diffusers_lora")
    unet: Any = stable_diffusion("sd15").unet
    with pytest.raises(PeftError, match=r"is a LoRA of Flux\.1 by its keys.*unet: UNet2DConditionModel"):
        import_adapter(unet, None, files["flux"])
    with pytest.raises(PeftError, match="is a LoRA of Z-Image by its keys"):
        import_adapter(pipeline("sd3").transformer, None, files["z_image"])
    with pytest.raises(PeftError, match=r"is a LoRA of Flux\.1 by its keys"):  # of which some fit
        import_adapter(pipeline("sd3").transformer, None, files["flux"])
    with pytest.raises(PeftError, match="kohya's files have no names for a ZImageTransformer2DModel"):
        made, _ = trained("z_image")
        export_adapter(made.transformer, None, tmp_path / "no", "kohya")
    made, _ = trained("flux", method="dora")
    with pytest.raises(PeftError, match="one module of several here, of which .*--as lora"):
        export_adapter(made.transformer, None, tmp_path / "no", "kohya")
