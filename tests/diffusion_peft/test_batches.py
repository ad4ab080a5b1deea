"""Buckets, and batches that keep to them."""

import torch
from peft_data.batches import generator_of

from diffusion_peft.data.buckets import bucket_step, fit_to, make_buckets
from diffusion_peft.data.examples import BucketBatches, Example, Examples
from diffusion_peft.data.latents import Captions, Latent


def test_buckets_of_512() -> None:
    buckets = make_buckets(512, bucket_step(512, 64))
    assert buckets[0] == (512, 512) and (384, 640) in buckets and (640, 384) in buckets
    assert all(h * w <= 512 * 512 and h % 64 == w % 64 == 0 and max(h, w) <= 2 * min(h, w) for h, w in buckets)
    assert bucket_step(64, 16) == 16


def test_a_picture_covers_its_bucket() -> None:
    buckets = make_buckets(512, 64)
    crop = fit_to(600, 1000, buckets)
    assert crop.size == (384, 640)
    assert crop.resized == (384, 640) and crop.corner == (0, 0)
    crop = fit_to(1000, 500, [(512, 512)])
    assert crop.resized == (1024, 512) and crop.corner == (256, 0)


def examples(prior: bool = False) -> Examples:
    shapes = [(4, 2, 2)] * 5 + [(4, 1, 4)] * 3
    captions = Captions(["", "a", "b"], rows=[{"hidden": torch.full((3, 2), float(n))} for n in range(3)])
    items = [
        Example(Latent(torch.full(shape, float(n)), torch.zeros(shape), (1, 1, 0, 0, 1, 1)), (1, 2), n % 2)
        for n, shape in enumerate(shapes)
    ]
    old = [
        Example(Latent(torch.full((4, 2, 2), 100.0 + n), torch.zeros(4, 2, 2), (1, 1, 0, 0, 1, 1)), (0,))
        for n in range(2)
    ]
    return Examples(items, captions, prior=[old[:1], old[1:]] if prior else [])


def test_each_step_has_one_shape_and_each_picture_comes_once() -> None:
    batches = BucketBatches(examples(), 2, seed=0)
    steps = list(batches)
    assert len(steps) == len(batches) == 5
    seen = sorted(value for step in steps for value in step["mean"][:, 0, 0, 0].tolist())
    assert seen == list(range(8))
    again = BucketBatches(examples(), 2, seed=0)
    assert all(torch.equal(a["mean"], b["mean"]) for a, b in zip(steps, again, strict=True))
    second = list(again)
    assert any(a["mean"].shape != b["mean"].shape or not torch.equal(a["mean"], b["mean"])
               for a, b in zip(steps, second, strict=True))  # fmt: skip


def test_repeats_and_processes() -> None:
    batches = BucketBatches(examples(), 2, seed=0, repeats=3)
    assert sum(len(step["mean"]) for step in batches) == 24
    shares = [BucketBatches(examples(), 1, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 5
    one = [sorted(step["mean"][:, 0, 0, 0].tolist()) for step in BucketBatches(examples(), 2, seed=0)]
    for rank0, rank1, whole in zip(*shares, one, strict=True):
        both = sorted(rank0["mean"][:, 0, 0, 0].tolist() + rank1["mean"][:, 0, 0, 0].tolist())
        assert both == (whole if len(whole) == 2 else whole * 1 + both[:1]) or set(whole) <= set(both)


def test_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = BucketBatches(examples(), 2, seed=0)
    steps = list(whole) + list(whole)
    first = BucketBatches(examples(), 2, seed=0)
    given = iter(first)
    next(given)
    next(given)
    second = BucketBatches(examples(), 2, seed=0)
    second.load_state_dict(first.state_dict())
    rest = list(second) + list(second)
    for a, b in zip(steps[2:], rest, strict=True):
        assert torch.equal(a["mean"], b["mean"]) and torch.equal(a["hidden"], b["hidden"])


def test_prior_pictures_are_of_the_same_concept() -> None:
    batch = examples(prior=True).batch([0, 1, 2], generator_of(0))
    assert batch["prior"]["mean"][:, 0, 0, 0].tolist() == [100, 101, 100]
    assert (batch["prior"]["hidden"] == 0).all() and set(batch["hidden"].unique().tolist()) <= {1.0, 2.0}


def test_caption_dropout() -> None:
    dropping = examples()
    dropping.dropout = 0.5
    found = torch.cat([dropping.batch([0, 1, 2, 3], generator_of(n))["hidden"][:, 0, 0] for n in range(200)])
    assert 0.4 < (found == 0).float().mean() < 0.6
