"""A base in one file with Stability's key names becomes a diffusers folder, once."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion_peft.base.bases import load_base
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.files.sgm import sgm_name
from peft_core.errors import PeftError
from tests.diffusion_peft.pipelines import stable_diffusion
from tests.diffusion_peft.transformers import pipeline

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


def original(kind: str, key: str) -> str:
    """A transformer's key as its authors' files have it."""
    if kind != "z_image":
        return key
    for own, other in (
        ("all_final_layer.2-1.", "final_layer."), ("all_x_embedder.2-1.", "x_embedder."), (".to_out.0.", ".out."),
        (".norm_k.", ".k_norm."), (".norm_q.", ".q_norm."),
    ):  # fmt: skip
        key = key.replace(own, other)
    return f"model.diffusion_model.{key}"


@pytest.mark.parametrize("kind", ["z_image", "flux"])
def test_a_transformer_in_one_file(kind: str, tmp_path: Path) -> None:
    """Z-Image's in its authors' layout; diffusers' converter of Flux knows the real width alone, so here its keys are its own."""
    with quiet_loading():
        stock = pipeline(kind)
        stock.save_pretrained(tmp_path / "rest")
    wanted = {key: torch.randn_like(value) for key, value in stock.transformer.state_dict().items()}
    tensors = {original(kind, key): value for key, value in wanted.items()}
    if kind == "z_image":
        for path in {key.rpartition(".to_q.")[0] for key in tensors if ".to_q." in key}:
            parts = [tensors.pop(f"{path}.to_{letter}.weight") for letter in "qkv"]
            tensors[f"{path}.qkv.weight"] = torch.cat(parts)
        tensors["vae.decoder.conv_in.weight"] = torch.zeros(1)  # of another part, which is not read
    save_file(tensors, tmp_path / "model.safetensors")
    base = load_base(f"{tmp_path / 'rest'}@{tmp_path / 'model.safetensors'}")
    found = base.part("transformer").state_dict()
    assert base.kind == kind and found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    vae = base.part("vae").state_dict()
    assert all(torch.equal(value, vae[key]) for key, value in stock.vae.state_dict().items())

    with pytest.raises(PeftError, match="needs the folder of its other parts"):
        load_base(str(tmp_path / "model.safetensors"))
    del tensors[next(key for key in tensors if ".norm_k." in key or ".k_norm." in key)]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(PeftError, match=r"cannot be read as the transformer .*it lacks weights"):
        load_base(f"{tmp_path / 'rest'}@{tmp_path / 'less.safetensors'}")
    tensors["layer.scale_weight"] = torch.ones(1)
    save_file(tensors, tmp_path / "scaled.safetensors")
    with pytest.raises(PeftError, match="8-bit numbers with scales.: get it in 16 bits"):
        load_base(f"{tmp_path / 'rest'}@{tmp_path / 'scaled.safetensors'}")
