"""ControlNet beside Stable Diffusion 3 and Flux: its start, its files in stock pipelines, its runs, and what is refused."""

import signal
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.base.families import of_kind
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.control import controls_of, set_condition
from diffusion_peft.control.files import write_control
from peft_core import PeftError, adapt, remove, set_scale
from tests import killed
from tests.diffusion_peft.pipelines import train
from tests.diffusion_peft.test_control_fit import SHORT, pairs  # noqa: F401
from tests.diffusion_peft.test_counts import inserted
from tests.diffusion_peft.test_fit import run as run_in_a_process
from tests.diffusion_peft.test_transformers import folders  # noqa: F401
from tests.diffusion_peft.transformers import flux, pipeline
from tests.parity.test_flow import Loaded

killed.preload(__name__, "diffusion_peft.training.job", "diffusers", "transformers.models.clip.modeling_clip")
SIDE = 8
STOCK: dict[str, Any] = {
    "sd3": (diffusers.StableDiffusion3ControlNetPipeline, diffusers.SD3ControlNetModel),
    "flux": (diffusers.FluxControlNetPipeline, diffusers.FluxControlNetModel),
}


def latents_of(kind: str, made: Any, picture: Tensor) -> Tensor:
    base: Any = Loaded(made)
    with torch.no_grad():
        mean, _ = of_kind(kind).encode(made.vae, 2 * picture - 1)
    shift, scale = of_kind(kind).normal(base)
    return (mean - shift) * scale


@torch.no_grad()
def drawn(made: Any, **more: Any) -> np.ndarray:
    call: dict[str, Any] = dict(prompt="a red toy", num_inference_steps=2, height=SIDE, width=SIDE, guidance_scale=3.5)
    picture = made(**call, **more, generator=torch.Generator().manual_seed(1)).images[0]
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("kind", STOCK)
def test_its_folder_opens_in_the_stock_pipeline(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    made = pipeline(kind)
    plain = drawn(made)
    adapt(made.transformer, "controlnet")
    picture = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
    set_condition(made.transformer, {"latents": latents_of(kind, made, picture)})
    assert np.array_equal(drawn(made), plain)  # at step 0
    train(made.transformer)
    ours = drawn(made)
    assert np.abs(ours - plain).max() > 8
    set_scale(made.transformer, 0.0)
    assert np.array_equal(drawn(made), plain)
    set_scale(made.transformer, 1.0)
    with quiet_loading():
        write_control(made.transformer, tmp_path)
    cls, net = STOCK[kind]
    parts = {
        key: value
        for key, value in pipeline(kind).components.items()
        if key not in ("image_encoder", "feature_extractor")
    }
    with quiet_loading():
        stock = cls(**parts, controlnet=net.from_pretrained(tmp_path))
    stock.set_progress_bar_config(disable=True)
    assert np.abs(drawn(stock, control_image=2 * picture - 1) - ours).max() <= 1
    remove(made.transformer)
    assert np.array_equal(drawn(made), plain)


def medium() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    )


def dev() -> nn.Module:
    return diffusers.FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)


@pytest.mark.parametrize("make, count", [(medium, 1_062_855_168), (dev, 2_046_461_952)], ids=["sd3", "flux"])
def test_counts(make: Any, count: int) -> None:
    with torch.device("meta"):
        model = make()
    if make is medium:
        theirs: Any = diffusers.SD3ControlNetModel
        shape: dict[str, Any] = {"num_layers": 12, "num_extra_conditioning_channels": 0}
    else:
        theirs, shape = diffusers.FluxControlNetModel, {"num_layers": 4, "num_single_layers": 4}
    with torch.device("meta"), quiet_loading():
        peer = theirs.from_transformer(model, load_weights_from_transformer=False, **shape)
    assert inserted(model, "controlnet", {}) == sum(p.numel() for p in peer.parameters()) == count


def test_a_run(pairs: Path, folders: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    settings: dict[str, Any] = SHORT | {"lr": 0.05}
    results = fit(data=str(pairs), base=folders["sd3"], method="controlnet", control={"condition": "depth", "drop": 0.3},
                  out=str(out), **settings)  # fmt: skip
    assert results["kind"] == "sd3" and results["effect"]["change"] > 0 and results["effect"]["open"] > 0
    ask = ["--condition", f"{pairs}/conditions/0.png", "--count", "1", "--steps", "1", "--prompt", "a picture"]
    assert main(["sample", "--run", str(out), "--out", str(tmp_path / "drawn"), *ask]) == 0
    sheet = Image.open(out / "samples" / "final.png")  # the same picture, by the command and by the run's report
    assert sheet.crop((10, 0, 18, 8)).tobytes() == Image.open(tmp_path / "drawn" / "00-0.png").tobytes()
    assert main(f"export --run {out} --format control --out {tmp_path}/files".split()) == 0
    net = diffusers.SD3ControlNetModel.from_pretrained(tmp_path / "files")
    assert net.config.force_zeros_for_pooled_projection is False and len(net.transformer_blocks) == 1


@pytest.mark.slow  # Flux by the same command
def test_a_run_of_flux(pairs: Path, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    with quiet_loading():
        flux(distilled=False).save_pretrained(tmp_path / "base")
    results = fit(data=str(pairs), base=str(tmp_path / "base"), method="controlnet", control={"condition": "depth"},
                  resolution=8, out=str(tmp_path / "run"), **SHORT)  # fmt: skip
    assert results["kind"] == "flux" and results["effect"]["change"] > 0
    ask = "--count 1 --steps 2 --guidance 3 --until 0.5 --height 8 --width 8 --prompt toy"
    line = f"sample --run {tmp_path}/run --condition {pairs}/conditions/0.png --out {tmp_path}/drawn {ask}"
    assert main(line.split()) == 0


@torch.no_grad()
def test_a_picture_as_prompt_of_flux(tmp_path: Path) -> None:
    made = pipeline("flux")
    plain = drawn(made)
    adapt(made.transformer, "ip_adapter", width=6)
    features = torch.randn(1, 6, generator=torch.Generator().manual_seed(9))
    set_condition(made.transformer, {"features": features, "null": torch.zeros(1, 6)})
    assert np.array_equal(drawn(made), plain)  # at step 0
    for parameter in made.transformer.parameters():
        if parameter.requires_grad:
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.2
            )
    set_condition(made.transformer, {"features": features, "null": torch.zeros(1, 6)})
    ours = drawn(made)
    assert np.abs(ours - plain).max() > 8
    write_control(made.transformer, tmp_path)
    stock = pipeline("flux")
    with quiet_loading():
        stock.load_ip_adapter(
            str(tmp_path), weight_name="ip_adapter.safetensors", image_encoder_pretrained_model_name_or_path=None
        )
    theirs = drawn(
        stock, ip_adapter_image_embeds=[features[:, None]], negative_ip_adapter_image_embeds=[features[:, None]]
    )
    assert np.abs(theirs - ours).max() <= 1
    set_scale(made.transformer, 0.3)
    stock.set_ip_adapter_scale(0.3)
    theirs = drawn(
        stock, ip_adapter_image_embeds=[features[:, None]], negative_ip_adapter_image_embeds=[features[:, None]]
    )
    assert np.abs(theirs - drawn(made)).max() <= 1
    with pytest.raises(PeftError, match="is for UNets: leave it out"):
        adapt(pipeline("flux").transformer, "ip_adapter", width=6, plus=True)
    with pytest.raises(PeftError, match="works on UNets and on Flux.1, and this is a Qwen"):
        adapt(pipeline("qwen_image").transformer, "ip_adapter", width=6)


def test_a_picture_as_prompt_under_checkpointing() -> None:
    gradients = []
    for checkpointed in (False, True):
        model: Any = pipeline("flux").transformer
        adapt(model, "ip_adapter", width=6).train()
        train(model)
        if checkpointed:
            model.enable_gradient_checkpointing()
        set_condition(model, {"features": torch.ones(2, 6), "null": torch.zeros(2, 6)})
        y = model(
            hidden_states=torch.ones(2, 4, 64), timestep=torch.tensor([0.3, 0.8]), guidance=torch.ones(2),
            encoder_hidden_states=torch.ones(2, 5, 32), pooled_projections=torch.ones(2, 24), txt_ids=torch.zeros(5, 3),
            img_ids=torch.zeros(4, 3), return_dict=False,
        )[0]  # fmt: skip
        y.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_omini_control_in_a_run(pairs: Path, tmp_path: Path) -> None:  # noqa: F811
    with torch.device("meta"):
        assert inserted(dev(), "omini_control", {}) == 14_487_808
    torch.manual_seed(0)
    with quiet_loading():
        flux().save_pretrained(tmp_path / "base")
    control = {"condition": "depth", "drop": 0.3}
    results = fit(data=str(pairs), base=str(tmp_path / "base"), method={"name": "omini_control", "rank": 2}, control=control,
                  flow={"guidance": 1.0}, resolution=8, out=str(tmp_path / "run"), **SHORT)  # fmt: skip
    assert results["kind"] == "flux" and results["effect"]["change"] > 0
    ask = "--count 1 --steps 2 --height 8 --width 8 --prompt toy"
    line = f"sample --run {tmp_path}/run --condition {pairs}/conditions/0.png --out {tmp_path}/drawn {ask}"
    assert main(line.split()) == 0
    assert main(f"export --run {tmp_path}/run --format control --out {tmp_path}/files".split()) == 0
    stock = pipeline("flux")
    stock.load_lora_weights(str(tmp_path / "files"), weight_name="pytorch_lora_weights.safetensors")
    assert len([name for name, _ in stock.transformer.named_modules() if name.endswith("lora_A.default_0")]) == 13
    with pytest.raises(PeftError, match="omini_control is for Flux.1, and .* is Stable Diffusion"):
        fit(
            data=str(pairs), base="reference", method="omini_control", control=control, out=str(tmp_path / "x"), **SHORT
        )


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(pairs: Path, folders: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    settings = dict(
        data=str(pairs), base=folders["sd3"], method="controlnet", control={"condition": "depth", "drop": 0.3}, cache="off",
        save_every=0.0, **SHORT | {"steps": 6},
    )  # fmt: skip
    assert run_in_a_process(tmp_path / "whole", **settings) == 0
    assert run_in_a_process(tmp_path / "killed", 3, **settings) == -signal.SIGKILL
    assert run_in_a_process(tmp_path / "killed", **settings) == 0
    for name in ("adapter/transformer/adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_what_is_refused(pairs: Path, folders: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    given: dict[str, Any] = dict(data=str(pairs), control={"condition": "depth"}, out=str(tmp_path / "run"), **SHORT)
    for more, words in (
        ({"method": "t2i_adapter", "base": folders["sd3"]}, "t2i_adapter is for UNets, and .* is Stable Diffusion 3"),
        ({"method": "controlnet", "base": folders["sana"]}, "is for UNets and for Stable Diffusion 3 and for Flux.1, and"),
        ({"method": "controlnet", "base": folders["sd3"], "control": {"condition": "depth", "early": True}},
         "--control.early is for the times of a discrete schedule"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            fit(**given | more)
    assert not (tmp_path / "run").exists()
    model = pipeline("sd3").transformer
    for hyper, words in (({"layers": 2}, "controlnet got layers 2, and this transformer has 1 blocks"),
                         ({"join": "norm"}, "join norm and other channels than 3 are for UNets"),
                         ({"channels": 1}, "other channels than 3")):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            adapt(model, "controlnet", **hyper)
    with pytest.raises(PeftError, match="controlnet copies UNets and transformers of"):
        adapt(pipeline("qwen_image").transformer, "controlnet")


@pytest.mark.parametrize("first, second", ["control omini".split(), "omini control".split(), ["omini"] * 2])
def test_pieces_that_are_joined_are_no_longer_counted(first: str, second: str) -> None:
    model, named = pipeline("flux").transformer, {"control": "controlnet", "omini": "omini_control"}
    adapt(model, "ip_adapter", width=6, name="picture")  # which counts no pieces
    adapt(model, named[first], name="first")
    with pytest.raises(PeftError, match=f"{named[second]} cannot stand beside {named[first]} .*: omini_control joins"):
        adapt(model, named[second], name="second")
    assert {name for name, _ in controls_of(model)} == {"picture", "first"}


@torch.no_grad()
def test_several_add_up_and_conditions_of_another_size_are_told() -> None:
    made = pipeline("sd3")
    model = made.transformer
    x = torch.randn(2, 16, 8, 8)
    call = dict(hidden_states=x, timestep=torch.tensor([10.0, 700.0]), encoder_hidden_states=torch.randn(2, 5, 48),
                pooled_projections=torch.randn(2, 40), return_dict=False)  # fmt: skip
    seen = torch.randn(1, 16, 8, 8)
    said = []
    for names in (("one",), ("two",), ("one", "two")):
        for number, name in enumerate(("one", "two")):
            if name in names:
                adapt(model, "controlnet", name=name)
                train(model, seed=number)
        set_condition(model, {"latents": seen})  # one picture, for both halves under guidance
        taken: dict[str, Any] = {}
        hook = model.transformer_blocks[1].register_forward_pre_hook(
            lambda m, a, k, into=taken: into.update(k), with_kwargs=True
        )
        model(**call)
        hook.remove()
        said.append(taken["hidden_states"])
        if names != ("one", "two"):
            remove(model)
    plain: dict[str, Any] = {}
    set_scale(model, 0.0)
    hook = model.transformer_blocks[1].register_forward_pre_hook(lambda m, a, k: plain.update(k), with_kwargs=True)
    model(**call)
    hook.remove()
    assert len(list(controls_of(model))) == 2 and not torch.equal(said[2], plain["hidden_states"])
    set_scale(model, 1.0)
    set_condition(model, {"latents": torch.randn(2, 16, 4, 8)})
    with pytest.raises(PeftError, match="the condition's latents are 16 × 4 × 8, the picture's 16 × 8 × 8"):
        model(**call)
