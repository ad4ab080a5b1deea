"""Files under other names and in other forms: told by their content; what any method does to the weights, as LoRA or whole."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_peft.files.embeddings import read_embedding
from diffusion_peft.files.source import open_content
from diffusion_peft.formats import export_adapter, import_adapter
from diffusion_peft.use.adapters import split_scale
from diffusion_peft.use.run import combine
from peft_core import PeftError, adapt
from tests.diffusion_peft.files import adapted, differs, lora, same
from tests.diffusion_peft.pipelines import picture, stable_diffusion, texts

METHODS = [
    lora(method="dora"),
    {"method": "oft"},
    {"method": "ia3"},
    {"method": "custom_diffusion"},
    lora(method="lokr"),
]


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s["method"])
@pytest.mark.parametrize("form, format", [("lora", "kohya"), ("lora", "diffusers_lora"), ("diff", "kohya")])
def test_what_a_method_does_to_the_weights_as_plain_lora_or_whole(settings, form, format, tmp_path, capsys):
    pipeline = adapted("sd15", settings, None)
    expected, plain = picture(pipeline), picture(stable_diffusion("sd15"))
    assert differs(expected, plain)
    file = export_adapter(pipeline.unet, None, tmp_path, format, as_=form)
    assert ("0.00% of the change is left out" in capsys.readouterr().err) == (form == "lora")
    ends = {key.rpartition(".")[2] for key in load_file(file)}
    assert ends <= ({"weight", "alpha"} if form == "lora" else {"diff", "diff_b"})
    fresh = stable_diffusion("sd15")
    assert import_adapter(fresh.unet, None, file).unmatched == ()
    same(picture(fresh), expected)
    if form == "lora":
        stock = stable_diffusion("sd15")
        stock.load_lora_weights(str(file))
        same(picture(stock), expected)


@pytest.mark.parametrize("method", ["bitfit", "layer_norm", "diff_fit"])
def test_biases_and_norms_whole(method, tmp_path):
    pipeline = adapted("sd15", {"method": method}, None)
    file = export_adapter(pipeline.unet, None, tmp_path, "kohya", as_="diff")
    fresh = stable_diffusion("sd15")
    assert import_adapter(fresh.unet, None, file).unmatched == ()
    same(picture(fresh), picture(pipeline))


def test_what_lora_cannot_say(tmp_path, capsys):
    with pytest.raises(PeftError, match="changes no matrix"):
        export_adapter(adapted("sd15", {"method": "bitfit"}, None).unet, None, tmp_path, "kohya", as_="lora")
    export_adapter(adapted("sd15", {"method": "diff_fit"}, None).unet, None, tmp_path, "kohya", as_="lora")
    assert "note: biases and norms that it changes are not in it" in capsys.readouterr().err
    with pytest.raises(PeftError, match="ssf cannot|has no bias that could take the shift"):
        export_adapter(adapted("sd15", {"method": "ssf"}, None).unet, None, tmp_path, "kohya", as_="diff")
    with pytest.raises(PeftError, match="controlnet cannot be written as changes of weights"):
        unet = adapted("sd15", {"method": "controlnet", "shrink": 1}, None).unet
        export_adapter(unet, None, tmp_path, "kohya", as_="diff")


def test_a_share_of_the_singular_values(tmp_path, capsys):
    """The layers are the nearest ones of their rank, and what they lack is said."""
    pipeline = adapted("sd15", lora(method="dora", targets=("q",)), None)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    stock = stable_diffusion("sd15").unet.get_submodule(path).weight
    layer = pipeline.unet.get_submodule(path)
    change = (next(iter(layer.peft.dora.values()))(stock) - stock).double().detach()
    values = torch.linalg.svdvals(change)
    file = export_adapter(pipeline.unet, None, tmp_path, "kohya", as_="lora", compress=0.8)
    name = f"lora_unet_{path.replace('.', '_')}"
    down, up = (load_file(file)[f"{name}.lora_{side}.weight"].double() for side in ("down", "up"))
    rank = len(down)
    assert values[:rank].sum() >= 0.8 * values.sum() > values[: rank - 1].sum()
    alpha = float(load_file(file)[f"{name}.alpha"])
    torch.testing.assert_close((change - alpha / rank * up @ down).norm(), values[rank:].norm(), rtol=1e-4, atol=0)
    said = capsys.readouterr().err
    assert "of the change is left out" in said and "0.00%" not in said


NOTES = [
    (lora(), "own", []),
    (lora(("attn",)), "own", []),
    (lora(method="dora"), "own", ["of this file's magnitudes LyCORIS makes what was trained"]),
    (lora(method="loha"), "own", ["sd-scripts' own networks.lora loads nothing of this file"]),
    (lora(method="dora", targets=("attn",)), "lora", []),
    (lora(method="dora"), "diff", ["sd-scripts' own networks.lora loads nothing of this file"]),
]


@pytest.mark.parametrize("settings, form, notes", NOTES, ids=str)
def test_readers_that_do_not_agree_are_named(settings, form, notes, tmp_path, capsys):
    export_adapter(adapted("sd15", settings, None).unet, None, tmp_path, "kohya", as_=form)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    said = [line for line in said if "leaves out layers outside" not in line]
    assert len(said) == len(notes) and all(note in line for note, line in zip(notes, said, strict=True))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    pipeline = adapted("sd15", lora(("attn",)), lora(("q", "v")))
    file = tmp_path_factory.mktemp("good") / "good.safetensors"
    export_adapter(pipeline.unet, texts(pipeline), file, "kohya")
    return file, picture(pipeline)


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.safetensors", "lora"])
def test_pickles_are_told_by_their_content(name, good, tmp_path):
    file, expected = good
    torch.save(load_file(file), tmp_path / name)
    fresh = stable_diffusion("sd15")
    with pytest.raises(PeftError, match="is a pickle, which can run code"):
        import_adapter(fresh.unet, texts(fresh), tmp_path / name)
    import_adapter(fresh.unet, texts(fresh), tmp_path / name, allow_pickle=True)
    same(picture(fresh), expected)
    save_file(load_file(file), tmp_path / "safe.pt")  # tensors alone, whatever the file is called
    fresh = stable_diffusion("sd15")
    import_adapter(fresh.unet, texts(fresh), tmp_path / "safe.pt")
    same(picture(fresh), expected)


def test_a_folder_with_a_pickle(good, tmp_path):
    file, expected = good
    torch.save(load_file(file), tmp_path / "pytorch_lora_weights.bin")
    torch.save({"state": 1}, tmp_path / "another.bin")
    fresh = stable_diffusion("sd15")
    with pytest.raises(PeftError, match="a pickle, .* add --allow_pickle"):
        import_adapter(fresh.unet, texts(fresh), tmp_path)
    import_adapter(fresh.unet, texts(fresh), tmp_path, allow_pickle=True)
    same(picture(fresh), expected)


def renamed_keys(file, change):
    return {change(key): value for key, value in load_file(file).items()}


def test_other_names_of_diffusers_files(tmp_path):
    """With PEFT's adapter name left in, under ComfyUI's prefixes, and by Stability's names of the UNet's modules."""
    from diffusion_peft.files.sgm import stock_names

    pipeline = adapted("sdxl", lora(("attn", "conv")), lora(("q", "v")))
    expected = picture(pipeline)
    file = export_adapter(pipeline.unet, texts(pipeline), tmp_path, "diffusers_lora")
    named = {path: name for name, path in stock_names(stable_diffusion("sdxl").unet).items()}

    def comfy(key: str) -> str:
        part, _, rest = key.partition(".")
        if part != "unet":
            tower = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[part]
            return f"text_encoders.{tower}.transformer.{rest}"
        path, _, end = rest.partition(".lora_")
        return f"diffusion_model.{named[path]}.lora_{end}"

    for change in (comfy, lambda key: key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")):
        save_file(renamed_keys(file, change), tmp_path / "other.safetensors")
        fresh = stable_diffusion("sdxl")
        assert import_adapter(fresh.unet, texts(fresh), tmp_path / "other.safetensors").unmatched == ()
        same(picture(fresh), expected)


def test_a_file_with_a_part_that_finds_no_place(good, sd15, tmp_path, capsys):
    file, expected = good
    save_file(load_file(file) | {"lora_unet_nowhere.lora_up.weight": torch.ones(2, 2)}, tmp_path / "more.safetensors")
    with pytest.raises(PeftError, match="nothing takes lora_unet_nowhere.lora_up.weight; .* --partial"):
        combine([(str(tmp_path / "more.safetensors"), 1.0)], sd15)
    run = combine([(str(tmp_path / "more.safetensors"), 1.0)], sd15, partial=True)
    assert "1 keys unmatched" in capsys.readouterr().err
    same(picture(run.base.pipeline()), expected)


def test_a_bundled_embedding_comes_along(good, sd15, tmp_path, capsys):
    file, _ = good
    vectors = torch.randn(2, 24)
    for key in ("bundle_emb.style.string_to_param.*", "bundle_emb.style.emb_params"):
        save_file(load_file(file) | {key: vectors}, tmp_path / "both.safetensors")
        run = combine([(str(tmp_path / "both.safetensors"), 1.0)], sd15)
        assert run.tokens == {"<style>": 2}
        torch.testing.assert_close(run.vectors()["<style>"][0], vectors)
        assert "the token <style>, 2 vectors" in capsys.readouterr().err


def test_tokens_of_embedding_files(sd15, tmp_path, capsys):
    vectors = torch.randn(2, 24)
    torch.save({"string_to_param": {"*": vectors}, "string_to_token": {"*": 265}, "name": "a"}, tmp_path / "a.pt")
    with pytest.raises(PeftError, match='"a" is a word of the vocabulary already'):
        combine([(str(tmp_path / "a.pt"), 1.0)], sd15, allow_pickle=True)
    run = combine([split_scale(f"{tmp_path}/a.pt:<mine>")], sd15, allow_pickle=True)
    assert run.tokens == {"<mine>": 2} and "the token <mine>, 2 vectors" in capsys.readouterr().err
    with pytest.raises(PeftError, match="is an embedding, which has no scale: give it without :0.5"):
        combine([split_scale(f"{tmp_path}/a.pt:0.5")], sd15, allow_pickle=True)
    save_file({"clip_l": vectors}, tmp_path / "pivot.safetensors")
    assert read_embedding(tmp_path / "pivot.safetensors")[0] == "<pivot>"
    save_file({"text_encoders_0": vectors, "text_encoders_1": torch.randn(2, 16)}, tmp_path / "pivots.safetensors")
    name, found = read_embedding(tmp_path / "pivots.safetensors")
    assert name == "<pivots>" and [len(each[0]) for each in found] == [24, 16]
    save_file({"emb_params": vectors * float("nan")}, tmp_path / "nan.safetensors")
    with pytest.raises(PeftError, match="emb_params holds values that are no numbers"):
        open_content(tmp_path / "nan.safetensors")


def test_an_adaptation_with_nan_is_not_written(tmp_path):
    unet = stable_diffusion("sd15").unet
    adapt(unet, "lora")
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.fill_(float("nan"))
    with pytest.raises(PeftError, match="holds values that are no numbers"):
        export_adapter(unet, None, tmp_path, "kohya")
    assert list(tmp_path.iterdir()) == []
