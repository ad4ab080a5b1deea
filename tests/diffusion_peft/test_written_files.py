"""Files that we write give the same pictures in stock diffusers and LyCORIS, and when they are read back here."""

import logging

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

from diffusion_peft.formats import export_adapter, import_adapter
from peft_core import disabled, load_adapter, merge, remove, save_adapter, set_scale
from tests.diffusion_peft.files import TEXT, adapted, differs, export, lora, same, short
from tests.diffusion_peft.pipelines import picture, stable_diffusion, texts


def stock_with(name: str, file, caplog) -> torch.Tensor:
    """The picture of stock diffusers with this file, which it must load without a complaint."""
    pipeline = stable_diffusion(name)
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    diffusers_logging.disable_propagation()
    found = [record.getMessage() for record in caplog.records if "No LoRA keys" not in record.getMessage()]
    assert found == []
    return picture(pipeline)


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
