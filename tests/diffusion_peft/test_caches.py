"""Latents and embeddings are computed once, keep the whole distribution, and give the loss that no cache gives."""

from pathlib import Path

import pytest
import torch
from peft_data.batches import generator_of

from diffusion_peft.base.bases import load_base
from diffusion_peft.base.texts import encode, ids_of
from diffusion_peft.control.data import Pair
from diffusion_peft.control.inputs import LatentInputs
from diffusion_peft.data.buckets import cut, fit_to
from diffusion_peft.data.cache import Cache, fingerprint, key_of
from diffusion_peft.data.examples import Example, Examples
from diffusion_peft.data.latents import Captions, encode_captions, encode_pictures
from diffusion_peft.data.pictures import open_pictures
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.noise import Discrete, alphas_of


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_cached_loss_equals_one_without_a_cache(name: str, toys: str, tmp_path: Path, request) -> None:
    base = load_base(request.getfixturevalue(name))
    pictures = open_pictures(toys)
    wanted = [(p, fit_to(p.height, p.width, [(8, 8)]), False) for p in pictures]
    captions = Captions(["", "a toy", "a red toy"])
    losses = []
    for _ in range(2):  # made, then read
        encoded = encode_pictures(base, wanted, Cache("latents", tmp_path))
        captions.rows = []
        encode_captions(base, captions, Cache("texts", tmp_path))
        examples = Examples([Example(latent, (1, 2)) for latent in encoded], captions)
        process = Discrete(alphas_of(base.config("scheduler")))
        module = Denoiser(base.part("unet"), {}, process, 10, family=base.family, normal=base.family.normal(base))
        batch = examples.batch([0, 2], generator_of(3))
        losses.append(module.loss(batch, generator_of(5)))

    posterior = [base.part("vae").encode(cut(p.read(), crop)[None]).latent_dist for p, crop, _ in wanted]
    chance = generator_of(3)
    texts = [captions.texts[1 + int(torch.randint(2, (), generator=chance))] for _ in range(2)]
    hidden, pooled = encode(base.text_encoders, ids_of(base, texts))
    plain = {"mean": torch.cat([posterior[0].mean, posterior[2].mean]), "hidden": hidden,
             "logvar": torch.cat([posterior[0].logvar, posterior[2].logvar]), "sizes": batch["sizes"]}  # fmt: skip
    losses.append(module.loss(plain | ({} if pooled is None else {"pooled": pooled}), generator_of(5)))
    assert losses[0] == losses[1]
    torch.testing.assert_close(losses[2], losses[0])
    assert batch["sizes"][1].tolist() == [20, 18, *wanted[2][1].corner, 8, 8]


def test_keys_follow_content_base_and_transform(sd15: str, toys: str) -> None:
    base = load_base(sd15)
    first, wide, _ = open_pictures(toys)
    keys = {
        key_of("latent", mark, picture.digest(), fit_to(picture.height, picture.width, sizes), flip)
        for mark in (fingerprint(base.part("vae")), "other")
        for picture in (first, wide)
        for sizes in ([(8, 8)], [(16, 16)])
        for flip in (False, True)
    }
    assert len(keys) == 16
    encoder = base.part("text_encoder")
    before = fingerprint(encoder)
    next(encoder.parameters()).data.view(-1)[0] += 1e-6
    assert fingerprint(encoder) != before


def test_damaged_and_half_written_entries_are_made_again(tmp_path: Path) -> None:
    cache = Cache("latents", tmp_path)
    cache.put("abc", {"mean": torch.ones(2)})
    assert torch.equal(cache.get("abc")["mean"], torch.ones(2))  # type: ignore[index]
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    assert cache.get("abc") is None and cache.get("other") is None
    memory = Cache("latents", None)
    memory.put("abc", {"mean": torch.ones(2)})
    assert torch.equal(memory.get("abc")["mean"], torch.ones(2))  # type: ignore[index]


def test_a_picture_as_another_condition_is_resized_as_that_is(sd15: str, toys: str, tmp_path: Path) -> None:
    base, cache = load_base(sd15), Cache("conditions", tmp_path)
    picture = open_pictures(toys)[1]
    pair, crop = Pair(picture, picture.read()), fit_to(picture.height, picture.width, [(8, 8)])
    mask, depth, again = (
        LatentInputs(kind, base, cache, torch.device("cpu")).entry(pair, crop) for kind in ("mask", "depth", "mask")
    )
    assert torch.equal(mask, again) and not torch.equal(mask, depth)
