"""Bases from folders: their kind, their parts, and what is said of those that will not do."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion_peft.base.bases import load_base
from diffusion_peft.drawing.draw import embed
from diffusion_peft.training.noise import alphas_of
from peft_core.errors import PeftError
from tests.diffusion_peft.pipelines import stable_diffusion


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copied(base: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


def test_kinds(sd15: str, sdxl: str, tmp_path: Path) -> None:
    assert load_base(sd15).kind == "sd1" and load_base(sdxl).kind == "sdxl"
    second = copied(sd15, tmp_path)
    edit(second / "text_encoder" / "config.json", hidden_act="gelu")
    edit(second / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    base = load_base(str(second))
    assert base.kind == "sd2" and base.prediction_type == "v_prediction"
    assert base.resolution == 8 and base.shrinks == 1


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(sd15: str, tmp_path: Path, part: str) -> None:
    folder = copied(sd15, tmp_path)
    shutil.rmtree(folder / part)
    with pytest.raises(PeftError, match=f"lacks its part {part}"):
        load_base(str(folder))


def test_missing_weights_are_named(sdxl: str, tmp_path: Path) -> None:
    folder = copied(sdxl, tmp_path)
    next((folder / "text_encoder_2").glob("*.safetensors")).unlink()
    base = load_base(str(folder))
    with pytest.raises(PeftError, match="its part text_encoder_2 cannot be loaded"):
        base.part("text_encoder_2")


def test_what_is_no_base(sd15: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PeftError, match="no model_index.json"):
        load_base(str(tmp_path / "empty"))
    with pytest.raises(PeftError, match="there is no base folder"):
        load_base("./nowhere")
    with pytest.raises(PeftError, match="there is no base file"):
        load_base("./nowhere.safetensors")
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(PeftError, match="is a pickle"):
        load_base(str(tmp_path / "old.ckpt"))
    (tmp_path / "odd.safetensors").write_bytes(b"nothing")
    with pytest.raises(PeftError, match="cannot be read as a Stable Diffusion model"):
        load_base(f"{sd15}@{tmp_path / 'odd.safetensors'}")
    folder = copied(sd15, tmp_path)
    edit(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(PeftError, match="takes 9 channels, not 4"):
        load_base(str(folder))
    edit(folder / "unet" / "config.json", in_channels=4)
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(PeftError, match="predicts sample"):
        load_base(str(folder))
    edit(folder / "model_index.json", _class_name="CogVideoXPipeline")
    with pytest.raises(PeftError, match="is a CogVideoXPipeline; what can be trained is"):
        load_base(str(folder))


UNKNOWN = [
    ("unet", {"time_cond_proj_dim": 256}, "its unet has time_cond_proj_dim = 256, and what is known is None"),
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
    ("unet", {"attention_type": "gated"}, "attention_type"),
    ("unet", {"conv_in_kernel": 5}, "conv_in_kernel"),
    ("unet", {"a_new_setting": 1}, "it is no known setting"),
    ("vae", {"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "its vae has latents_mean"),
    ("vae", {"latents_std": [2.0, 2.0, 2.0, 2.0]}, "its vae has latents_std"),
    ("vae", {"shift_factor": 0.1}, "its vae has shift_factor = 0.1"),
    ("text_encoder", {"use_attention_mask": True}, "its text_encoder has use_attention_mask"),
    ("scheduler", {"_class_name": "EDMEulerScheduler"}, "a EDMEulerScheduler, whose noise schedule"),
    ("scheduler", {"_class_name": "LCMScheduler"}, "LCMScheduler"),
    ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
    ("scheduler", {"sigma_data": 0.5}, "its scheduler has sigma_data = 0.5"),
    ("scheduler", {"timestep_type": "continuous"}, "timestep_type"),
    ("scheduler", {"use_flow_sigmas": True}, "use_flow_sigmas"),
    ("scheduler", {"beta_schedule": "laplace"}, "beta_schedule is laplace"),
]


@pytest.mark.parametrize("part, changes, words", UNKNOWN, ids=[f"{part}-{next(iter(c))}" for part, c, _ in UNKNOWN])
def test_what_is_not_known_of_a_base_is_refused(
    sd15: str, tmp_path: Path, part: str, changes: dict, words: str
) -> None:
    folder = copied(sd15, tmp_path)
    edit(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **changes)
    with pytest.raises(PeftError, match=words):
        load_base(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "interpolation_type": "linear"},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
        {"_class_name": "UniPCMultistepScheduler", "solver_order": 3},
        {"trained_betas": None, "beta_schedule": "scaled_linear"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_settings_of_discrete_schedulers_are_known(sd15: str, tmp_path: Path, changes: dict) -> None:
    folder = copied(sd15, tmp_path)
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    base = load_base(str(folder))
    ours = alphas_of(base.config("scheduler"))
    stock = base.part("scheduler").alphas_cumprod
    assert torch.allclose(ours[:-1], stock[:-1]) and ours[-1] <= stock[-1] + 1e-6


def test_parts_of_other_classes_are_refused(sd15: str, tmp_path: Path) -> None:
    folder = copied(sd15, tmp_path)
    for part, cls in (("vae", "AutoencoderTiny"), ("text_encoder", "T5EncoderModel"), ("unet", "UNetMotionModel")):
        kept = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))[part]
        edit(folder / "model_index.json", **{part: ["diffusers", cls]})
        with pytest.raises(PeftError, match=f"its {part} is a {cls}; what is known is"):
            load_base(str(folder))
        edit(folder / "model_index.json", **{part: kept})
    (folder / "unet" / "config.json").write_text("[" * 3000, encoding="utf-8")
    with pytest.raises(PeftError, match="config.json is .*: get it again"):
        load_base(str(folder))


def test_precision(sd15: str) -> None:
    base = load_base(sd15, "bfloat16")
    assert base.part("unet").dtype == base.part("text_encoder").dtype == torch.bfloat16
    assert base.part("vae").dtype == torch.float32


def test_parts_are_freed_and_loaded_again(sd15: str) -> None:
    base = load_base(sd15)
    first = base.part("vae")
    base.free("vae")
    assert "vae" not in base.parts and base.part("vae") is not first


# with transformers 5 the stock pipeline of SD 1.x finds no text_model, which clip_skip needs
@pytest.mark.parametrize(("name", "clip_skip"), [("sd15", 0), ("sdxl", 0), ("sdxl", 1)])
def test_prompts_are_those_of_the_stock_pipeline(name: str, clip_skip: int, request: pytest.FixtureRequest) -> None:
    prompt = embed(load_base(request.getfixturevalue(name)), "a red toy", clip_skip)
    stock = stable_diffusion(name)
    with torch.no_grad():
        found = stock.encode_prompt(prompt="a red toy", device="cpu", num_images_per_prompt=1,
                                    do_classifier_free_guidance=False, clip_skip=clip_skip or None)  # fmt: skip
    assert torch.equal(prompt.hidden, found[0])
    if name == "sdxl":
        assert torch.equal(prompt.pooled, found[2])
