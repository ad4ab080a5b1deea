"""Image features that are computed once."""

from pathlib import Path

import pytest
import torch
from peft_data.augment import augmentation
from peft_data.batches import generator_of
from peft_data.pictures import Fit

from clip_peft import OpenVocabulary
from clip_peft.frozen import cosine
from clip_peft.run import ClipRun
from clip_peft.training.contrast import Contrast
from clip_peft.training.evaluate import reliability
from clip_peft.training.features import Encoder, Views, frozen_image_tower
from peft_core import PeftError
from peft_core.jobs.reports.scores import Scores
from tests.clip_peft.models import NAMES, clip, tokenizer

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
PIXELS = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def encoder(folder: Path | None, model=None) -> Encoder:
    whole = OpenVocabulary(model or clip(), "coop", NAMES, tokenizer(), context=2)
    return Encoder(whole, MEAN, STD, folder)


def count_calls(made: Encoder) -> list[int]:
    calls: list[int] = []
    made.whole.model.visual.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    return calls


def test_a_view_is_what_the_tower_says_of_it(tmp_path: Path) -> None:
    made = encoder(tmp_path)
    plain, first, again = made.views(PIXELS, [None, 1, 1], "crop_flip", seed=3)
    floats = (PIXELS.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(plain, made.whole.encode(floats), atol=1e-6, rtol=1e-5)
    changed = augmentation("crop_flip")(PIXELS, generator_of(3, 1, 0))
    assert torch.equal(first, again) and torch.equal(first, made.encode(changed))
    assert len(list(tmp_path.glob("*.f32"))) == 2 and not list(tmp_path.glob("*.part"))


def test_nothing_is_computed_twice_and_everything_counts(tmp_path: Path) -> None:
    made = encoder(tmp_path)
    calls = count_calls(made)
    made.views(PIXELS, range(3), "flip", seed=1)
    assert len(calls) == 3
    made.views(PIXELS, range(4), "flip", seed=1)
    assert len(calls) == 4  # the fourth view alone
    made.views(PIXELS, range(4), "none", seed=1)
    assert len(calls) == 5  # without augmentation they are all the same picture
    same = encoder(tmp_path)
    repeated = count_calls(same)
    same.views(PIXELS, range(4), "flip", seed=1)
    assert not repeated
    other = clip()
    with torch.no_grad():
        other.visual.ln_post.bias.add_(1e-3)
    differs = encoder(tmp_path, other)
    assert not torch.equal(differs.views(PIXELS, [0], "flip", 1)[0], made.views(PIXELS, [0], "flip", 1)[0])
    assert not torch.equal(made.views(PIXELS, [0], "flip", 2)[0], made.views(PIXELS, [0], "flip", 1)[0])
    brighter = made.views(PIXELS.clamp(max=200), [0], "flip", 1)[0]
    assert not torch.equal(brighter, made.views(PIXELS, [0], "flip", 1)[0])


def test_a_file_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    made = encoder(tmp_path)
    whole = made.views(PIXELS, [None])[0].clone()
    (path,) = tmp_path.glob("*.f32")
    path.write_bytes(path.read_bytes()[:33])
    assert torch.equal(made.views(PIXELS, [None])[0], whole)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PeftError, match="image features cannot be kept in .*: make room there, name another folder"):
        encoder(tmp_path / "file" / "features").views(PIXELS, [None])


def test_without_a_folder_nothing_is_kept() -> None:
    made = encoder(None)
    assert torch.equal(made.views(PIXELS, [None])[0], made.encode(PIXELS))


def test_picking_views() -> None:
    views = Views([torch.full((4, 2), float(view)) + torch.arange(4)[:, None] * 10 for view in range(3)])
    picked = [views.pick(torch.tensor([3, 0, 1]), generator_of(1, step)) for step in range(20)]
    assert all(torch.equal(p[:, 0] // 10, torch.tensor([3.0, 0.0, 1.0])) for p in picked)
    assert {float(value) for p in picked for value in p[:, 0] % 10} == {0.0, 1.0, 2.0}


@pytest.mark.parametrize(
    ("method", "frozen"),
    [("coop", True), ("clip_adapter", True), ("maple", False), ("clip_lora", False), ("tpt", False)],
)
def test_which_methods_leave_the_image_tower_as_it_is(method: str, frozen: bool) -> None:
    hyper = {"maple": {"depth": 2}, "coop": {"context": 2}}.get(method, {})
    assert frozen_image_tower(OpenVocabulary(clip(), method, NAMES, tokenizer(), **hyper)) is frozen


def test_text_grafts_leave_the_image_tower_as_it_is() -> None:
    assert frozen_image_tower(OpenVocabulary(clip(), "lora", NAMES, tokenizer(), tower="text"))


def test_coop_s_schedule() -> None:
    settings = {"augment": "none", "warmup_epochs": 1, "warmup_lr": 1e-5, "lr": 2e-3, "final_lr": 0.0}
    contrast = Contrast(encoder(None), 50 * 7, 7, None, stepwise=False, **settings)
    rates = [contrast.rate(step / 7) for step in range(50 * 7)]
    # Dassl: CosineAnnealingLR over 50 epochs under ConstantWarmupScheduler (1 epoch at 1e-5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    expected = [1e-5]
    for _ in range(49):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert rates[::7] == pytest.approx(expected) and rates[6::7] == pytest.approx(expected)
    stepwise = Contrast(
        encoder(None), 100, 10, None, stepwise=True, **settings | {"warmup_epochs": 0, "final_lr": 0.01}
    )
    short = Contrast(encoder(None), 7, 7, None, stepwise=False, **settings)  # all of it would be warm-up
    assert short.rate(0) == short.rate(6 / 7) == 2e-3
    assert stepwise.rate(0) == 2e-3 and stepwise.rate(5) == pytest.approx(2e-3 * 0.505) and stepwise.rate(10) == 2e-5


def test_expected_calibration_error_by_hand() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    scores = Scores(torch.zeros(2, 2), torch.tensor([0, 1, 0, 0]), torch.tensor([0.9, 0.92, 0.95, 0.55]))
    found = reliability(scores, labels, bins=5)
    # bins (0.4, 0.6]: 1 right of 1 at 0.55; (0.8, 1]: 2 right of 3 at 0.9233
    assert found["ece"] == pytest.approx(0.25 * 0.45 + 0.75 * abs(2 / 3 - (0.9 + 0.92 + 0.95) / 3), abs=1e-6)
    assert [row["count"] for row in found["bins"]] == [0, 0, 1, 0, 3]


def test_logits_are_not_rounded_by_autocast() -> None:
    features = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    texts = torch.nn.functional.normalize(torch.randn(9, 512, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosine(features.bfloat16(), texts.bfloat16())
    exact = torch.nn.functional.normalize(features.bfloat16().double(), dim=-1) @ texts.bfloat16().double().t()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wide", [True, False])
def test_views_at_test_are_cut_from_the_frame_that_predict_was_given(monkeypatch, wide: bool) -> None:
    """A method with views at test sees the margins of a wide picture, which its centre square has not."""
    whole = OpenVocabulary(
        clip(), "tpt" if wide else "zero_shot", NAMES, tokenizer(), **({"views": 20} if wide else {})
    )
    made = Encoder(whole, MEAN, STD)
    run = ClipRun(whole, whole.class_names, MEAN, STD, Fit((32, 32), "crop", 1.0), {}, {}, encoder=made)
    image = torch.zeros(3, 40, 200, dtype=torch.uint8)
    image[:, :, :60] = image[:, :, 140:] = 255
    seen: list[torch.Tensor] = []
    images_of = Encoder.images
    monkeypatch.setattr(Encoder, "images", lambda self, images: (seen.append(images), images_of(self, images))[1])
    (prediction,) = run.predict(image)
    assert prediction.class_name in NAMES
    assert (torch.cat(seen).float().mean() > 60) == wide
    assert run.transform(image).shape == (3, 32, 32) and run.ready(image).shape[-1] == (200 if wide else 32)
