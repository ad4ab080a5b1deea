"""A control's files in stock diffusers: the same pictures as from the UNet that trained."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.control import set_condition
from diffusion_peft.control.files import read_gligen, write_control
from peft_core import PeftError, adapt, load_adapter, save_adapter, set_scale
from tests.diffusion_peft import control
from tests.diffusion_peft.files import differs, same
from tests.diffusion_peft.pipelines import stable_diffusion
from tests.readme import blocks

SHAPES = pytest.mark.parametrize("name", ["sd15", "sdxl"])


@torch.no_grad()
def picture(pipeline: Any, **more: Any) -> Tensor:
    size: dict[str, Any] = dict(height=8, width=8) if hasattr(pipeline, "text_encoder_2") else {}
    generator = torch.Generator().manual_seed(3)
    call = dict(num_inference_steps=3, guidance_scale=4.0, generator=generator, output_type="pt") | size | more
    images = pipeline("a cat", **call).images
    return images if isinstance(images, Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)


def stock(kind: type, name: str, **parts: Any) -> Any:
    given = stable_diffusion(name).components
    if kind.__name__.startswith("StableDiffusionXL"):
        given = {k: v for k, v in given.items() if k not in ("image_encoder",)}
        given["feature_extractor"] = None
    with quiet_loading():
        known = kind.__init__.__code__.co_varnames
        pipeline = kind(**{k: v for k, v in (given | parts).items() if k in known},
                        **({"requires_safety_checker": False} if "requires_safety_checker" in known else {}))  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def expected(name: str, method: str, out: Path, **hyper: Any) -> Tensor:
    """What the trained UNet draws; its files are in `out`. It differs from the base, which it is at scale 0."""
    pipeline = control.controlled(name, method, **hyper)
    control.give(pipeline, hyper.get("plus", False))
    y, base = picture(pipeline), picture(stable_diffusion(name))
    assert differs(y, base)
    set_scale(pipeline.unet, 0.0)
    assert torch.equal(picture(pipeline), base)
    set_scale(pipeline.unet, 1.0)
    with quiet_loading():
        write_control(pipeline.unet, out)
    set_condition(pipeline.unet, None)
    if method != "controlnext":  # which trains weights of the UNet too
        assert torch.equal(picture(pipeline), base)
    return y


@SHAPES
def test_controlnet(name: str, tmp_path: Path) -> None:
    y = expected(name, "controlnet", tmp_path)
    kind = StableDiffusionControlNetPipeline if name == "sd15" else StableDiffusionXLControlNetPipeline
    pipeline = stock(kind, name, controlnet=ControlNetModel.from_pretrained(tmp_path))
    same(picture(pipeline, image=control.map_picture()), y)


@SHAPES
def test_control_lora(name: str, tmp_path: Path) -> None:
    y = expected(name, "control_lora", tmp_path)
    base = stable_diffusion(name)
    small = SimpleNamespace(from_unet=partial(ControlNetModel.from_unet, conditioning_embedding_out_channels=(16,)))
    names: dict[str, Any] = {
        "pipe": base,
        "ControlNetModel": small,
        "load_file": lambda file: load_file(tmp_path / file),
    }
    exec(*blocks("python", "ControlNetModel"), names)
    net = names["net"]
    kind = StableDiffusionControlNetPipeline if name == "sd15" else StableDiffusionXLControlNetPipeline
    same(picture(stock(kind, name, controlnet=net), image=control.map_picture()), y)


@SHAPES
def test_t2i_adapter(name: str, tmp_path: Path) -> None:
    y = expected(name, "t2i_adapter", tmp_path)
    kind = StableDiffusionAdapterPipeline if name == "sd15" else StableDiffusionXLAdapterPipeline
    pipeline = stock(kind, name, adapter=T2IAdapter.from_pretrained(tmp_path))
    same(picture(pipeline, image=control.map_picture()), y)


@SHAPES
@pytest.mark.parametrize("plus", [False, True])
def test_ip_adapter(name: str, plus: bool, tmp_path: Path) -> None:
    y = expected(name, "ip_adapter", tmp_path, plus=plus)
    pipeline = stable_diffusion(name)
    seen = control.features(plus)
    both = torch.cat([torch.zeros_like(seen), seen])[:, None]
    with quiet_loading():
        pipeline.load_ip_adapter(
            str(tmp_path), subfolder=".", weight_name="ip_adapter.safetensors", image_encoder_folder=None
        )
    same(picture(pipeline, ip_adapter_image_embeds=[both]), y)
    pipeline.set_ip_adapter_scale(0.0)
    assert torch.equal(picture(pipeline, ip_adapter_image_embeds=[both]), picture(stable_diffusion(name)))


def test_gligen(tmp_path: Path) -> None:
    y = expected("sd15", "gligen", tmp_path)
    boxes: dict[str, Any] = dict(gligen_phrases=control.PHRASES, gligen_boxes=control.BOXES)
    base = stable_diffusion("sd15")
    for unet in (UNet2DConditionModel.from_pretrained(tmp_path / "unet"),
                 read_gligen(base.unet, tmp_path / "gligen.safetensors")):  # fmt: skip
        pipeline = stock(StableDiffusionGLIGENPipeline, "sd15", unet=unet)
        same(picture(pipeline, gligen_scheduled_sampling_beta=1.0, **boxes), y)
        assert not torch.equal(picture(pipeline, gligen_scheduled_sampling_beta=0.4, **boxes), y)
    assert {key.split(".")[0] for key in load_file(tmp_path / "gligen.safetensors")} == {
        "position_net", "down_blocks", "mid_block", "up_blocks"}  # fmt: skip
    with torch.no_grad():
        for parameter in base.unet.parameters():
            parameter.mul_(-1)
    with pytest.raises(PeftError, match="trained on a backbone with other weights"):
        read_gligen(base.unet, tmp_path / "gligen.safetensors")


def test_gligen_of_sdxl_stands_in_a_gated_unet(tmp_path: Path) -> None:
    expected("sdxl", "gligen", tmp_path)
    with quiet_loading():
        again = UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    assert again.config.attention_type == "gated"


@SHAPES
def test_controlnext(name: str, tmp_path: Path) -> None:
    """Its files and the README's loader: the network is this package's, the pipeline is diffusers'."""
    from diffusion_peft.control.loaders import load_controlnext

    y = expected(name, "controlnext", tmp_path)
    pipeline = stable_diffusion(name)
    load_controlnext(pipeline.unet, tmp_path)
    set_condition(pipeline.unet, {"picture": control.map_picture()})
    same(picture(pipeline), y)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    pipeline = control.controlled("sd15", "controlnet", join="norm")
    with pytest.raises(PeftError, match="adds its residuals as they are"):
        write_control(pipeline.unet, tmp_path)
    pipeline = control.controlled("sd15", "controlnet")
    set_scale(pipeline.unet, 0.5)
    with pytest.raises(PeftError, match="is scaled to 0.5"):
        write_control(pipeline.unet, tmp_path)
    with pytest.raises(PeftError, match="has 0 controls"):
        write_control(stable_diffusion("sd15").unet, tmp_path)
    assert not any(tmp_path.iterdir())
    assert isinstance(stable_diffusion("sd15"), StableDiffusionPipeline)


def test_an_image_prompt_saved_before_its_keys_and_values_stood_at_the_attention_opens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = adapt(stable_diffusion("sd15").unet, "ip_adapter", width=6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    folder = save_adapter(model, tmp_path / "a")
    tensors = {
        key.replace("peft.ip_adapter.keys_values.make.", "to_out.0.peft.ip_adapter.image."): value
        for key, value in load_file(folder / "adapter.safetensors").items()
    }
    assert any("to_out.0.peft" in key for key in tensors)
    save_file(tensors, folder / "adapter.safetensors")
    again = load_adapter(stable_diffusion("sd15").unet, folder)
    for (key, one), (_, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, other), key
