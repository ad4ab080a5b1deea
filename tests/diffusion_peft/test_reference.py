"""The reference latent diffusion: stock classes, a tokenizer for any prompt, a training that a kill does not change.

Networks of a few thousand parameters stand for the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft_data.world.captioned import COLOURS, LABELS, captioned_block, words
from safetensors.torch import load_file

from diffusion_peft import reference
from diffusion_peft.reference import autoencoder, denoiser, judge, train
from diffusion_peft.reference.build import FULL, TINY, new_scheduler, new_text_encoder, new_tokenizer, new_unet, new_vae
from peft_core.jobs.runs.training_state import keep


def options(folder: Path, *more: str) -> list[str]:
    return ["--tiny", "--state", str(folder / "state"), "--out", str(folder / "out" / "pipeline"), "--vae-steps", "5",
            "--steps", "5", "--batch", "4", "--blocks", "1", "--pictures", "12", "--every", "2", *more]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    train.main(options(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return new_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_it_is_a_stock_pipeline_that_draws(trained) -> None:
    folder = trained / "out" / "pipeline"
    for pipeline in (reference.load(folder), StableDiffusionPipeline.from_pretrained(str(folder))):
        assert type(pipeline) is StableDiffusionPipeline and pipeline.safety_checker is None
        assert {
            p.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()
        } == {torch.float32}
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.vae.config.scaling_factor == 1 and pipeline.scheduler.config.prediction_type == "epsilon"
        made = pipeline("sks", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        assert made.images.shape == (1, 3, 64, 64) and made.images.isfinite().all()
    for path in folder.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    card = json.loads((trained / "out" / "card.json").read_text())
    assert card["steps"] == 5 and card["seed"] == 0 and set(card["parameters"]) == {"vae", "unet", "text_encoder"}


def test_the_full_size_is_small_and_has_attention_at_two_resolutions(tokenizer) -> None:
    parts = [new_vae(FULL), new_unet(FULL), new_text_encoder(FULL, tokenizer)]
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert 5_000_000 < count < 8_000_000
    assert [hasattr(block, "attentions") for block in parts[1].down_blocks] == [True, True, False]
    assert all(len(block.attentions[0].transformer_blocks) == 1 for block in parts[1].down_blocks[:2])


def test_known_words_are_one_token_and_any_prompt_can_be_said(tokenizer) -> None:
    for word in words():
        assert len(tokenizer.tokenize(word)) == 1, word
    assert tokenizer.tokenize("A large RED star") == [f"{word}</w>" for word in "a large red star".split()]
    for prompt in ("a photo of sks thing", "größer, 猫! <*> 🙂 42", "\x07", "zyzzyva"):
        assert tokenizer.unk_token not in tokenizer.tokenize(prompt)
        assert tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True).replace(
            " ", ""
        ) == prompt.replace(" ", "")
    padded = tokenizer("a star", padding="max_length", max_length=77, truncation=True).input_ids
    assert len(padded) == 77 and padded[3:] == [tokenizer.eos_token_id] * 74 and tokenizer.model_max_length == 77
    assert len(tokenizer("star " * 100, truncation=True).input_ids) == 77


@pytest.mark.parametrize(
    "stage", [pytest.param("autoencoder.safetensors", marks=pytest.mark.slow), "denoiser.safetensors"]
)
def test_training_goes_on_after_a_kill_with_the_same_bytes(stage: str, trained, tmp_path, monkeypatch) -> None:
    def keep_then_die(tensors: dict[str, torch.Tensor], path: Path) -> None:
        keep(tensors, path)
        if path.name == stage:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffusion_peft.reference.progress.keep", keep_then_die)
        with pytest.raises(KeyboardInterrupt):
            train.main(options(tmp_path))
    assert not (tmp_path / "out").exists()
    train.main(options(tmp_path))
    assert bytes_of(tmp_path) == bytes_of(trained)


def test_export_writes_what_the_state_holds(trained, tmp_path) -> None:
    (tmp_path / "state").symlink_to(trained / "state")
    train.main(options(tmp_path, "--export"))
    assert bytes_of(tmp_path) == bytes_of(trained)
    train.main(options(tmp_path, "--export"))
    assert not list((tmp_path / "out").glob("*.old")) and not list((tmp_path / "out").glob("*.part"))


def test_the_model_that_ships_obeys_colours() -> None:
    """Thing and ground have the colours that the prompt names, whatever the judge says."""
    pairs = [("red", "blue"), ("yellow", "black"), ("white", "green"), ("purple", "orange")]
    pipeline = reference.load()
    assert reference.CARD["parameters"] == {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in reference.CARD["parameters"]
    }
    prompts = [f"a large {thing} circle on a {ground} background" for thing, ground in pairs]
    pictures = judge.samples(pipeline, prompts, seed=0, steps=12, guidance=4.0).float() / 255
    names, palette = list(COLOURS), torch.tensor(list(COLOURS.values()))
    for picture, (thing, ground) in zip(pictures, pairs, strict=True):
        nearest = (picture.permute(1, 2, 0)[:, :, None] - palette).square().sum(-1).argmin(-1)
        share = nearest.flatten().bincount(minlength=len(names)) / nearest.numel()
        first, second = share.topk(2).indices.tolist()
        assert {names[first], names[second]} == {thing, ground}


def test_a_missing_part_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="lacks model_index.json; reinstall"):
        reference.load(tmp_path)


def test_standardised_latents_have_unit_deviation_and_decode_alike() -> None:
    torch.manual_seed(0)
    vae = new_vae(TINY).eval().requires_grad_(False)
    pictures = captioned_block(0, n=20)[0]
    images = autoencoder.signed(pictures)
    before = vae.encode(images).latent_dist
    picture, spread = vae.decode(before.mean).sample, before.std / before.mean.std((0, 2, 3))[:, None, None]
    autoencoder.standardise(vae, pictures)
    after = vae.encode(images).latent_dist
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(vae.decode(after.mean).sample, picture, atol=1e-4)
    assert torch.allclose(after.std, spread, rtol=1e-3)


def test_plain_attention_is_the_stock_attention(tokenizer) -> None:
    torch.manual_seed(0)
    unet, text_encoder = new_unet(TINY), new_text_encoder(TINY, tokenizer)
    tokens = tokenizer(["a star", ""], padding="max_length", return_tensors="pt").input_ids
    arguments = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), text_encoder(tokens)[0]
    stock = unet(*arguments).sample
    unet.set_attn_processor(denoiser.PlainAttention())
    assert torch.allclose(unet(*arguments).sample, stock, atol=1e-5)


def test_every_picture_comes_up_once_a_turn_and_captions_change(tmp_path) -> None:
    latents = denoiser.Latents(new_vae(TINY).eval(), tmp_path, 0, 1, 12)
    turn = [latents.batch(step, 4) for step in range(3)]
    whole = latents.block(0)["latents"].float()
    seen = torch.cat([batch for batch, _ in turn])
    assert sorted(map(float, seen.sum((1, 2, 3)))) == pytest.approx(sorted(map(float, whole.sum((1, 2, 3)))))
    labels = turn[0][1].repeat(50, 1)
    texts = denoiser.prompts_of(labels, 0, 0)
    assert texts == denoiser.prompts_of(labels, 0, 0) != denoiser.prompts_of(labels, 1, 0)
    assert 0.03 < texts.count("") / len(texts) < 0.2


def test_the_loss_is_the_weighted_error_of_the_noise(tokenizer) -> None:
    class Silent(torch.nn.Module):
        def forward(self, noisy, steps, context):
            self.steps = steps
            return type("Output", (), {"sample": noisy * 0})

    torch.manual_seed(0)
    silent, scheduler = Silent(), new_scheduler()
    tokens = tokenizer([""] * 64, padding="max_length", return_tensors="pt").input_ids
    loss = denoiser.loss_of(silent, new_text_encoder(TINY, tokenizer), scheduler, torch.zeros(64, 4, 16, 16), tokens)
    kept = scheduler.alphas_cumprod[silent.steps]
    weight = ((kept / (1 - kept)).clamp(max=5) * (1 - kept) / kept).mean()
    assert loss.item() == pytest.approx(weight.item(), rel=0.05)  # noise has unit variance, the guess is 0


@pytest.mark.slow
def test_the_judge_tells_colours_after_a_few_steps_and_writes_figures(trained, tmp_path, monkeypatch) -> None:
    learned = judge.train_judge(0, steps=60, count=32)
    pictures, labels = captioned_block(0, "held out", n=200)
    figures = judge.obedience(judge.guesses(learned, pictures), labels)
    assert figures["ground colour"] > 60 and 0 <= figures["all"] <= figures["ground colour"]
    assert judge.obedience(labels, labels)["all"] == 100
    worst = judge.by_word(torch.where(labels == 2, 0, labels), labels)
    assert worst["shape triangle"] == 0 and next(iter(worst.values())) == 0 and worst["shape circle"] == 100
    keep(learned.state_dict(), tmp_path / "judge.safetensors")
    sheet = tmp_path / "docs" / "samples.png"
    judge.main(["--pipeline", str(trained / "out" / "pipeline"), "--judge", str(tmp_path / "judge.safetensors"),
                "--count", "4", "--steps", "1", "--drawn", "50", "--sheet", str(sheet)])  # fmt: skip
    card = json.loads((trained / "out" / "card.json").read_text())
    assert card["figures"]["samples"]["count"] == 4 and sheet.stat().st_size > 1000
    assert set(card["figures"]["judge on samples"]) >= {"shape", "colour", "ground", "all"} <= set(figures)
    assert sum(p.numel() for p in learned.parameters()) < 500_000 and len(LABELS) == 12
