"""Files that we write give the same pictures in stock diffusers and LyCORIS; files that they write give them here."""

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_peft.formats import export_adapter, import_adapter, kohya
from peft_core import PeftError, adapt, disabled, load_adapter, merge, remove, save_adapter, set_scale
from tests.diffusion_peft.pipelines import picture, stable_diffusion, texts, train
from tests.diffusion_peft.test_counts import unet

EVERYTHING = ("attn", "cross_attn", "mlp", "proj_io", "conv", "time", "time_embed")
TEXT = {"attention": ("attn",), "q and v": ("q", "v"), "mlp": ("mlp",), "one layer": ("k",)}
SEEN = 1e-3


def adapted(name: str, unet: dict[str, Any] | None, text: dict[str, Any] | None) -> Any:
    pipeline = stable_diffusion(name)
    if unet is not None:
        adapt(pipeline.unet, **unet)
        train(pipeline.unet)
    if text is not None:
        for model in texts(pipeline):
            adapt(model, **text)
            train(model)
    return pipeline


def lora(targets: Any = EVERYTHING, **more: Any) -> dict[str, Any]:
    return {"method": "lora", "rank": 3, "alpha": 5.0, "targets": targets} | more


def export(pipeline: Any, path, format: str):
    return export_adapter(pipeline.unet, texts(pipeline), path, format)


def stock_with(name: str, file, caplog) -> torch.Tensor:
    """The picture of stock diffusers with this file, which it must load without a complaint."""
    pipeline = stable_diffusion(name)
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    found = [record.getMessage() for record in caplog.records if "No LoRA keys" not in record.getMessage()]
    assert found == []
    return picture(pipeline)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > SEEN)


def short(value: Any) -> str:
    return (
        "-".join(str(v) for k, v in value.items() if k not in ("targets", "alpha"))
        if isinstance(value, dict)
        else str(value)
    )


WRITTEN = [
    ("diffusers_lora", "sd15", lora(), lora(TEXT["attention"])),
    ("diffusers_lora", "sd15", lora(rank=[1, 0, 4, 2, 3]), lora(TEXT["q and v"])),
    ("diffusers_lora", "sd15", lora(("attn",)), lora(TEXT["mlp"])),
    ("diffusers_lora", "sd15", lora(method="dora"), lora(TEXT["attention"], method="dora")),
    ("diffusers_lora", "sdxl", lora(), lora(("attn", "mlp"))),
    ("diffusers_lora", "sdxl", lora(rank=[4, 2, 3, 0, 1], method="dora"), None),
    ("diffusers_lora", "sd15", None, lora(TEXT["one layer"])),
    ("kohya", "sd15", lora(), lora(TEXT["attention"])),
    ("kohya", "sd15", lora(rank=[1, 0, 4, 2, 3]), lora(TEXT["q and v"])),
    ("kohya", "sd15", lora(rank=[1, 0, 4, 2, 3], alpha=None), lora(TEXT["mlp"], rank=[1, 4], alpha=None)),
    ("kohya", "sd15", None, lora(TEXT["one layer"])),
    ("kohya", "sdxl", lora(), lora(("attn", "mlp"))),
    ("kohya", "sdxl", lora(rank=[4, 2, 3, 0, 1]), lora(TEXT["q and v"])),
]


@pytest.mark.parametrize("format, base, unet, text", WRITTEN, ids=short)
def test_stock_diffusers_draws_the_same_picture(format, base, unet, text, tmp_path, caplog):
    pipeline = adapted(base, unet, text)
    file = export(pipeline, tmp_path, format)
    expected, plain = picture(pipeline), picture(stable_diffusion(base))
    assert differs(expected, plain)
    same(stock_with(base, file, caplog), expected)
    fresh = stable_diffusion(base)
    result = import_adapter(fresh.unet, texts(fresh), file)
    assert not result.unmatched and sum(result.matched.values()) > 0
    same(picture(fresh), expected)
    for model in (fresh.unet, *texts(fresh)):
        if "_peft_record" in model.__dict__:
            merge(model)
    same(picture(fresh), expected)


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_without_its_header_the_file_gives_the_same_picture(base, tmp_path, caplog):
    pipeline = adapted(base, lora(rank=[4, 2, 3, 0, 1]), lora(TEXT["attention"]))
    file = export(pipeline, tmp_path, "diffusers_lora")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(file), bare)
    same(stock_with(base, bare, caplog), picture(pipeline))


def test_weights_and_unloading_in_stock_diffusers(tmp_path):
    pipeline = adapted("sd15", lora(), None)
    file = export(pipeline, tmp_path, "diffusers_lora")
    stock = stable_diffusion("sd15")
    stock.load_lora_weights(str(file), adapter_name="style")
    stock.set_adapters(["style"], [0.5])
    set_scale(pipeline.unet, 0.5)
    same(picture(stock), picture(pipeline))
    stock.unload_lora_weights()
    same(picture(stock), picture(stable_diffusion("sd15")))


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_several_files_load_together(base, tmp_path):
    first, second = adapted(base, lora(), None), adapted(base, lora(("attn",), method="loha"), lora(("attn",)))
    files = [
        export(first, tmp_path / "a.safetensors", "diffusers_lora"),
        export(second, tmp_path / "b.safetensors", "kohya"),
    ]
    both = stable_diffusion(base)
    plain = picture(both)
    for file, name, scale in zip(files, "ab", (0.8, 0.5), strict=True):
        import_adapter(both.unet, texts(both), file, name=name, scale=scale)
    drawn = picture(both)
    set_scale(first.unet, 0.8)
    assert differs(drawn, plain) and differs(drawn, picture(first))
    remove(both.unet, "b")
    for model in texts(both):
        remove(model)
    same(picture(both), picture(first))
    with disabled(both.unet):
        same(picture(both), plain)


LYCORIS = [
    lora(method="loha"),
    lora(method="loha", rank=[1, 0, 4, 2, 3]),
    lora(method="lokr", rank=2),
    lora(method="lokr", rank=2, factor=4, tucker=True),
    lora(method="lokr", rank=1, decompose_both=True, factor=3),
    lora(method="lokr", full_matrix=True),
    lora(method="dora"),
    lora(),
]


@pytest.mark.parametrize("settings", LYCORIS, ids=short)
def test_lycoris_draws_the_same_picture(settings, tmp_path):
    from lycoris import create_lycoris_from_weights

    pipeline = adapted("sd15", settings, None)
    file = export(pipeline, tmp_path, "kohya")
    stock = stable_diffusion("sd15")
    weights = {key.replace("lora_unet", "lycoris", 1): value for key, value in load_file(file).items()}
    with torch.no_grad():
        network, _ = create_lycoris_from_weights(1.0, None, stock.unet, weights_sd=weights)
    network.apply_to()
    names = {key.partition(".")[0] for key in weights}
    assert len(network.loras) == len(names)
    expected = picture(pipeline)
    assert differs(expected, picture(stable_diffusion("sd15")))
    same(picture(stock), expected)
    fresh = stable_diffusion("sd15")
    assert import_adapter(fresh.unet, fresh.text_encoder, file).matched == {"unet": len(names)}
    same(picture(fresh), expected)


# ---- files of others -----------------------------------------------------------------------------------------------


def peft_pipeline(base: str, **settings: Any) -> Any:
    """A stock pipeline trained by PEFT, alpha ≠ rank."""
    pipeline = stable_diffusion(base)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "to_k", "to_out.0", "ff.net.2"], **settings)
    pipeline.unet.add_adapter(config)
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "out_proj", "fc1"]))
    for model in (pipeline.unet, pipeline.text_encoder):
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


def test_half_precision_files(tmp_path):
    pipeline = adapted("sd15", lora(), None)
    expected = picture(pipeline)
    for format in ("diffusers_lora", "kohya"):
        file = export_adapter(pipeline.unet, None, tmp_path, format, dtype=torch.float16)
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}
        fresh = stable_diffusion("sd15")
        import_adapter(fresh.unet, None, file)
        assert all(p.dtype == torch.float32 for p in fresh.unet.parameters())
        torch.testing.assert_close(picture(fresh), expected, rtol=0, atol=5e-3)


def test_an_imported_file_is_an_adaptation_like_any_other(tmp_path):
    pipeline = adapted("sd15", lora(method="lokr", rank=2), None)
    fresh = stable_diffusion("sd15")
    import_adapter(fresh.unet, None, export_adapter(pipeline.unet, None, tmp_path, "kohya"), name="style")
    save_adapter(fresh.unet, tmp_path / "ours")
    again = stable_diffusion("sd15")
    load_adapter(again.unet, tmp_path / "ours")
    same(picture(again), picture(pipeline))
    file = export_adapter(again.unet, None, tmp_path / "again.safetensors", "kohya", name="style")
    first = load_file(tmp_path / "lora.safetensors")
    assert {key: value.shape for key, value in load_file(file).items()} == {k: v.shape for k, v in first.items()}


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


# ---- key names and headers -----------------------------------------------------------------------------------------


def test_names_of_kohya_files(tmp_path):
    pipeline = adapted("sd15", lora(), lora(TEXT["attention"]))
    with safe_open(export(pipeline, tmp_path, "kohya"), "pt") as file:
        keys, header = set(file.keys()), file.metadata()
        down = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
        assert (
            file.get_tensor(down).shape == (3, 16) and file.get_tensor(down.replace("lora_down.weight", "alpha")) == 5
        )
        conv = "lora_unet_down_blocks_0_resnets_0_conv1"
        assert file.get_tensor(f"{conv}.lora_down.weight").shape == (3, 16, 3, 3)
        assert file.get_tensor(f"{conv}.lora_up.weight").shape == (16, 3, 1, 1)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in keys
    assert header["ss_network_module"] == "networks.lora" and header["ss_network_dim"] == "3"
    assert header["ss_network_alpha"] == "5.0" and header["ss_base_model_version"] == "sd_v1"


def test_names_of_sdxl_kohya_files(tmp_path):
    pipeline = adapted("sdxl", lora(), lora(TEXT["attention"]))
    names = {key.partition(".")[0] for key in load_file(export(pipeline, tmp_path, "kohya"))}
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_1_0_in_layers_2", "lora_unet_input_blocks_1_0_emb_layers_1",
        "lora_unet_input_blocks_4_0_skip_connection", "lora_unet_middle_block_1_proj_in",
        "lora_unet_middle_block_2_out_layers_3", "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_output_blocks_2_2_conv", "lora_unet_time_embed_0", "lora_unet_label_emb_0_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj", "lora_te2_text_model_encoder_layers_1_self_attn_v_proj",
    ):  # fmt: skip
        assert name in names
    assert not any(part in name for name in names for part in ("down_blocks", "mid_block", "up_blocks"))


def test_names_of_the_real_unets():
    names = set(kohya._names("unet", unet("sdxl"), sdxl=True))
    for name in (
        "input_blocks_8_1_transformer_blocks_9_attn2_to_k", "output_blocks_5_2_conv", "input_blocks_6_0_op",
        "output_blocks_3_1_transformer_blocks_1_ff_net_2", "output_blocks_8_0_in_layers_2", "middle_block_0_emb_layers_1",
    ):  # fmt: skip
        assert f"lora_unet_{name}" in names
    assert len(names) == 743 + 51
    names = set(kohya._names("unet", unet("sd15"), sdxl=False))
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0" in names and len(names) == 184 + 98


def test_names_of_diffusers_files(tmp_path):
    keys = set(load_file(export(adapted("sd15", lora(), lora(TEXT["mlp"])), tmp_path, "diffusers_lora")))
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    assert "text_encoder.text_model.encoder.layers.1.mlp.fc2.lora_linear_layer.up.weight" in keys


# ---- what is refused -----------------------------------------------------------------------------------------------


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
