"""A base in one file with Stability's key names becomes a diffusers folder, once."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusion_peft.base.bases import load_base
from diffusion_peft.files.sgm import sgm_name
from tests.diffusion_peft.pipelines import stable_diffusion

_VAE = [
    (r"(en|de)coder\.(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1coder.\2.\3.block.\4"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"), (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"), ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
]  # fmt: skip


def one_file(pipeline, file: Path) -> None:
    """The weights under the names of the original Stable Diffusion 1 checkpoints."""
    tensors: dict[str, torch.Tensor] = {}
    unet = pipeline.unet
    for key, value in unet.state_dict().items():
        path, _, name = key.rpartition(".")
        block = unet.get_submodule(".".join(path.split(".")[:2])) if path.startswith("up_blocks.") else None
        own = sgm_name(path, unet.config.layers_per_block, hasattr(block, "attentions"))
        tensors[f"model.diffusion_model.{own}.{name}"] = value.clone()
    for key, value in pipeline.vae.state_dict().items():
        is_attention = "attentions" in key and value.ndim == 2
        for pattern, other in _VAE:
            key = re.sub(pattern, other, key)
        tensors[f"first_stage_model.{key}"] = value[..., None, None].clone() if is_attention else value.clone()
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value.clone()
    save_file(tensors, file)


def test_single_file(sd15: str, tmp_path: Path, capsys) -> None:
    pipeline = stable_diffusion("sd15")
    one_file(pipeline, tmp_path / "model.safetensors")
    spec = f"{sd15}@{tmp_path / 'model.safetensors'}"
    base = load_base(spec)
    assert "is converted once" in capsys.readouterr().err and base.kind == "sd1"
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(pipeline, part).state_dict()
        found = base.part(part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), part
    load_base(spec)
    assert capsys.readouterr().err == ""
