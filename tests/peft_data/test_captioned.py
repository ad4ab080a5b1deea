"""Captioned pictures and subjects: the words say what is drawn, and nothing else."""

from __future__ import annotations

import random

import pytest
import torch
from peft_data import DataError
from peft_data.world import subjects
from peft_data.world.captioned import (
    COLOURS,
    LABELS,
    SHAPES,
    SIZES,
    TEXTURE_WORDS,
    caption,
    captioned_block,
    draw_scenes,
    words,
)
from peft_data.world.draw import Draw
from peft_data.world.render import render, screen
from peft_data.world.scene import BACKGROUNDS
from peft_data.world.shapes import SHAPES as ALL_SHAPES
from peft_data.world.textures import TEXTURES
from peft_data.world.words import colour_name
from PIL import Image

GROUND_KINDS = ("plain", "gradient", "clouds", "stripes", "checks", "hall")


def row(**values: int) -> list[int]:
    plain = dict.fromkeys(LABELS, -1) | {"shape": 3, "colour": 0, "texture": 1, "size": 2, "place": 4, "ground": 0,
                                         "ground colour": 5}  # fmt: skip
    return list((plain | {name.replace("_", " "): value for name, value in values.items()}).values())


def test_pictures_and_labels() -> None:
    pictures, labels = captioned_block(0, n=60)
    assert pictures.dtype == torch.uint8 and pictures.shape == (60, 3, 64, 64) and labels.shape == (60, len(LABELS))
    for k, (name, count) in enumerate(LABELS.items()):
        assert labels[:, k].min() >= (-1 if name.startswith("second") else 0) and labels[:, k].max() < count
    assert torch.equal(pictures, captioned_block(0, n=60)[0])
    for other in ({"block": 1}, {"split": "test"}, {"seed": 1}):
        assert not torch.equal(pictures, captioned_block(**({"block": 0} | other), n=60)[0])
    assert captioned_block(0, size=40, n=4)[0].shape == (4, 3, 40, 40)


def test_a_caption_says_everything_in_one_order() -> None:
    assert caption(row()) == "a large red striped star on a blue background"
    assert caption(row(size=1, colour=1, texture=0, ground=3)) == "an orange star on a striped blue background"
    assert caption(row(shape=5, ground=5, ground_colour=9)) == "a large red striped half moon in a white room"
    second = {f"second_{name}": value for name, value in {"shape": 0, "colour": 2, "texture": 3, "size": 0}.items()}
    assert caption(row(**second)) == "a large red striped star and a small yellow dotted circle on a blue background"


def test_labels_are_what_the_scene_shows() -> None:
    scene, labels = draw_scenes(Draw("captioned", "test", 0, 0), 300)
    layers, (_, _, radius) = render(scene, 64), screen(scene)
    low, high = torch.tensor(list(SIZES.values())).unbind(1)
    for n, values in enumerate(labels.tolist()):
        of = dict(zip(LABELS, values, strict=True))
        two = of["second shape"] >= 0
        assert scene.present[n].tolist() == [True, two]
        assert colour_name(scene.ground[n]) == tuple(COLOURS)[of["ground colour"]]
        assert BACKGROUNDS[int(scene.background[n])] == GROUND_KINDS[of["ground"]]
        for slot, prefix in ((0, ""), (1, "second "))[: 1 + two]:
            assert ALL_SHAPES[int(scene.shape[n, slot])] == SHAPES[of[prefix + "shape"]]
            assert TEXTURES[int(scene.texture[n, slot])] == tuple(TEXTURE_WORDS)[of[prefix + "texture"]]
            assert colour_name(scene.colour[n, slot]) == tuple(COLOURS)[of[prefix + "colour"]]
            assert of[prefix + "colour"] != of["ground colour"]
            assert 0.97 * low[of[prefix + "size"]] <= radius[n, slot] <= high[of[prefix + "size"]]
            seen = (layers.mask[n] == slot + 1).nonzero().float()
            assert len(seen) > 30, "a thing is hidden or too small to see"
            y, x = ((seen + 0.5).mean(0) / 32 - 1).tolist()
            across, down = of[prefix + "place"] % 3, of[prefix + "place"] // 3
            for value, third in ((x, across), (y, down)):
                assert (-1.0, -0.4, 0.1)[third] <= value <= (-0.1, 0.4, 1.0)[third]


def test_captions_vary_and_hold_nothing_but_known_words_and_a_few_made_up_ones() -> None:
    _, labels = captioned_block(0, n=200)
    rng = random.Random(0)
    texts = [caption(label, rng) for label in labels for _ in range(5)]
    assert texts == [caption(label, again) for again in [random.Random(0)] for label in labels for _ in range(5)]
    assert len(set(texts)) > 800 and min(len(text.split()) for text in texts) <= 3
    known = set(words())
    odd = [text for text in texts if set(text.split()) - known]
    assert 0.03 < len(odd) / len(texts) < 0.1 and all(len(set(text.split()) - known) == 1 for text in odd)
    used = {word for text in texts for word in text.split()}
    assert known <= used, known - used


def test_a_shorter_caption_never_contradicts_the_full_one() -> None:
    _, labels = captioned_block(1, n=200)
    rng = random.Random(1)
    said = set(COLOURS) | {word for shape in SHAPES for word in shape.split()} | set(TEXTURE_WORDS.values()) - {"plain"}
    for label in labels:
        full = set(caption(label).split())
        assert set(caption(label, rng).split()) & said <= full


@pytest.mark.parametrize("number", range(len(subjects.PARTS)))
def test_a_subject_is_one_thing_in_several_scenes(number: int) -> None:
    subject = subjects.draw_subject(number)
    assert subject.pictures.shape == (5, 3, 64, 64) and len(set(subject.captions("sks thing"))) == 5
    assert subject.captions()[0].startswith("a photo of a thing on a")
    share = subject.masks.float().mean((1, 2))
    assert share.min() > 0.04 and share.max() < 0.4
    assert not subject.masks[:, 0].any() and not subject.masks[:, -1].any(), "it is cut off"
    other = subjects.draw_subject(number, split="test")
    assert not torch.equal(subject.pictures, other.pictures)
    parts = subjects.PARTS[number]
    assert any(part.shape not in SHAPES or part.texture not in TEXTURE_WORDS for part in parts)


def test_subjects_as_a_folder_and_by_name(tmp_path) -> None:
    subjects.write_subject(3, tmp_path / "s", name="sks thing")
    files = sorted((tmp_path / "s").glob("*.png"))
    assert len(files) == 5 and Image.open(files[0]).size == (64, 64)
    assert files[0].with_suffix(".txt").read_text(encoding="utf-8").startswith("a photo of sks thing on a")
    assert subjects.number_of("world/subjects/7") == 7 and len(subjects.NAMES) >= 8
    for wrong in ("world/subjects/99", "world/subjects/x"):
        with pytest.raises(DataError, match="world/subjects/0 to"):
            subjects.number_of(wrong)
    with pytest.raises(DataError, match="no subject 99"):
        subjects.draw_subject(99)
