"""Files that diffusers, PEFT and LyCORIS write give the same pictures here; what fits nothing is refused."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from diffusion_peft.formats import import_adapter
from peft_core import PeftError, adapt, merge, set_scale
from tests.diffusion_peft.files import TEXT, adapted, differs, export, lora, same, short
from tests.diffusion_peft.pipelines import picture, stable_diffusion, texts, train


def peft_pipeline(base: str, **settings: Any) -> Any:
    """A stock pipeline trained by PEFT, alpha ≠ rank.

    PEFT itself puts the adapters in: transformers' `add_adapter`, which does the same, refuses PEFT releases older than it
    knows, at times all that there are.
    """
    pipeline = stable_diffusion(base)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "to_k", "to_out.0", "ff.net.2"], **settings)
    inject_adapter_in_model(config, pipeline.unet)
    of_text = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "out_proj", "fc1"])
    inject_adapter_in_model(of_text, pipeline.text_encoder)
    for model in (pipeline.unet, pipeline.text_encoder):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        train(model)
    return pipeline


@pytest.mark.parametrize(
    "base, settings",
    [
        ("sd15", {"use_rslora": True}),
        ("sd15", {"use_dora": True}),
        ("sdxl", {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"attn1.to_q": 2}}),
    ],
    ids=short,
)
def test_files_of_diffusers_draw_the_same_picture(base, settings, tmp_path):
    pipeline = peft_pipeline(base, **settings)
    unet, text = (get_peft_model_state_dict(model) for model in (pipeline.unet, pipeline.text_encoder))
    from diffusers.training_utils import _collate_lora_metadata

    metadata = _collate_lora_metadata({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    pipeline.save_lora_weights(tmp_path, unet, text_encoder_lora_layers=text, **metadata)
    fresh = stable_diffusion(base)
    assert differs(picture(pipeline), picture(fresh))
    assert import_adapter(fresh.unet, texts(fresh), tmp_path).unmatched == ()
    same(picture(fresh), picture(pipeline))


def test_files_of_peft_and_of_old_diffusers_draw_the_same_picture(tmp_path):
    pipeline = stable_diffusion("sd15")
    plain = picture(pipeline)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "to_out.0"])
    wrapped = get_peft_model(pipeline.unet, config)
    train(wrapped)
    wrapped.save_pretrained(tmp_path)
    expected = picture(pipeline)
    assert differs(expected, plain)
    fresh = stable_diffusion("sd15")
    import_adapter(fresh.unet, None, tmp_path)
    same(picture(fresh), expected)
    tensors = {}
    for key, value in load_file(tmp_path / "adapter_model.safetensors").items():
        path, _, letter = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        at, _, role = path.removesuffix(".0").rpartition(".")
        value = value * 7 / 3 if letter == "B" else value
        tensors[f"{at}.processor.{role}_lora.{'up' if letter == 'B' else 'down'}.weight"] = value
    save_file(tensors, tmp_path / "old.safetensors")
    fresh = stable_diffusion("sd15")
    import_adapter(fresh.unet, None, tmp_path / "old.safetensors")
    same(picture(fresh), expected)


def test_files_of_lycoris_draw_the_same_picture(tmp_path):
    from lycoris import create_lycoris

    for algo, more in (
        ("loha", {}),
        ("lokr", {"factor": 4}),
        ("locon", {"dora_wd": True}),
        ("locon", {"use_tucker": True}),
    ):
        pipeline = stable_diffusion("sd15")
        torch.manual_seed(1)
        network = create_lycoris(pipeline.unet, 1.0, linear_dim=2, linear_alpha=2, algo=algo, preset="full", **more)
        network.apply_to()
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        network.save_weights(str(tmp_path / "l.safetensors"), torch.float32, {})
        fresh = stable_diffusion("sd15")
        expected = picture(pipeline)
        assert differs(expected, picture(fresh))
        result = import_adapter(fresh.unet, None, tmp_path / "l.safetensors", strict=False)
        assert all("norm" in key for key in result.unmatched), result.unmatched
        same(picture(fresh), expected)


@pytest.mark.parametrize("alpha, scale", [(None, 1.0), (0.0, 1.0), (5.0, 5.0 / 2)])
def test_alpha_of_a_kohya_file(alpha, scale, tmp_path):
    """W' = W + (alpha / rank) up down; an alpha of 0, which LyCORIS and sd-scripts read as none at all, is the rank."""
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    fresh = stable_diffusion("sd15").unet
    stock = fresh.get_submodule(path).weight.detach().clone()
    down, up = torch.randn(2, stock.shape[1]), torch.randn(stock.shape[0], 2)
    name = f"lora_unet_{path.replace('.', '_')}"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(tensors | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}), tmp_path / "a.safetensors")
    import_adapter(fresh, None, tmp_path / "a.safetensors")
    torch.testing.assert_close(merge(fresh).get_submodule(path).weight, stock + scale * up @ down)


def refused(message: str):
    return pytest.raises(PeftError, match=message)


def test_exports_that_are_refused(tmp_path):
    pipeline = stable_diffusion("sd15")
    with refused("none of these models has an adaptation"):
        export(pipeline, tmp_path, "kohya")
    adapt(pipeline.unet, "lora")
    with refused("changes nothing yet"):
        export(pipeline, tmp_path, "kohya")
    with refused('unknown format "kohia", did you mean "kohya"'):
        export(pipeline, tmp_path, "kohia")
    train(pipeline.unet)
    set_scale(pipeline.unet, 0.5)
    with refused("scaled to 0.5"):
        export(pipeline, tmp_path, "kohya")
    for method in ("ia3", "bitfit", "oft"):
        with refused(f"{method} has no place in a LoRA file"):
            export(adapted("sd15", {"method": method}, None), tmp_path, "kohya")
    with refused("diffusers loads no loha files: export as kohya"):
        export(adapted("sd15", lora(method="loha"), None), tmp_path, "diffusers_lora")
    both = adapted("sd15", lora(), None)
    adapt(both.unet, "dora", name="second")
    with refused(r"several adaptations \(lora, second\)"):
        export(both, tmp_path, "kohya")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["diffusers_lora", "kohya"])
def test_imports_that_are_refused(format, tmp_path):
    pipeline = adapted("sd15", lora(("attn", "cross_attn")), lora(TEXT["attention"]))
    file = export(pipeline, tmp_path / "good.safetensors", format)
    fresh, other = stable_diffusion("sd15"), stable_diffusion("sdxl")
    with refused("for another base model: its texts are 24 wide, this UNet's 40|does not fit these models"):
        import_adapter(other.unet, texts(other), file)
    with refused("nothing takes .*; give the model that they belong to"):
        import_adapter(fresh.unet, None, file)
    tensors = load_file(file)
    save_file(tensors | {"lora_unet_nowhere.lora_up.weight": torch.ones(2, 2)}, tmp_path / "more.safetensors")
    with refused("nothing takes lora_unet_nowhere.lora_up.weight"):
        import_adapter(fresh.unet, fresh.text_encoder, tmp_path / "more.safetensors")
    zero = {key: value if key.endswith("alpha") else value * 0 for key, value in tensors.items()}
    save_file(zero, tmp_path / "zero.safetensors")
    with refused("has no effect"):
        import_adapter(fresh.unet, fresh.text_encoder, tmp_path / "zero.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:200])
    with refused("truncated"):
        import_adapter(fresh.unet, fresh.text_encoder, tmp_path / "cut.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "none.safetensors")
    with refused("no LoRA file of a known format"):
        import_adapter(fresh.unet, fresh.text_encoder, tmp_path / "none.safetensors")
    (tmp_path / "old").mkdir()
    torch.save(tensors, tmp_path / "old" / "pytorch_lora_weights.bin")
    for path in (tmp_path / "old", tmp_path / "old" / "pytorch_lora_weights.bin"):
        with refused("pickle"):
            import_adapter(fresh.unet, fresh.text_encoder, path)
    with refused("there is no LoRA file"):
        import_adapter(fresh.unet, fresh.text_encoder, tmp_path / "gone.safetensors")
    assert "_peft_record" not in fresh.unet.__dict__ and "_peft_record" not in fresh.text_encoder.__dict__
    same(picture(fresh), picture(stable_diffusion("sd15")))
