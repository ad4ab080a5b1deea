"""The drawn few-shot sets and the captioned pictures: what is base, new and held back, and that captions are true."""

from __future__ import annotations

import re

import peft_data.world_open as world_open
import pytest
import torch
from peft_data import DataError, list_data, open_data
from peft_data.world import captions_pool
from peft_data.world.captions_pool import captions
from peft_data.world.draw import Draw
from peft_data.world.named import COLOURS, COLUMNS, FIRST_ANIMAL, GROUNDS, NOUNS, draw_named, palette
from peft_data.world.open import SETS, attributes_of, draw_set, kind_of, new_words, pretraining_knows
from peft_data.world.phrases import HELD_BACK, PATTERNED, WORDS, caption, held_back, mentions, true_of
from peft_data.world.textures import TEXTURES
from peft_data.world.words import colour_name


def test_a_set_opens_by_its_name_and_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(world_open, "SPLITS", {"train": 3, "val": 1, "test": 2})
    data = open_data("world/open/objects")
    assert data.name == "world/open/objects" and data.name in list_data() and len(data.class_names) == 32
    assert (len(data.train), len(data.val), len(data.test)) == (96, 32, 64)
    assert data.train.items.shape == (96, 3, 40, 40) and data.train.items.dtype == torch.uint8
    assert data.test.labels.bincount().tolist() == [2] * 32
    kept = next(tmp_path.rglob("*.safetensors"))
    stamp = kept.stat().st_mtime_ns
    assert torch.equal(open_data("world/open/objects").test.items, data.test.items)
    assert kept.stat().st_mtime_ns == stamp
    assert not torch.equal(open_data("world/open/objects", seed=1).test.items, data.test.items)


def test_an_unknown_set_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="world/open/objects"):
        open_data("world/open/object")
    with pytest.raises(DataError, match="world/open/scenes"):
        world_open.load("world/open/scene")


@pytest.mark.parametrize("task", SETS)
def test_names_base_classes_first(task: str) -> None:
    names, kinds = SETS[task]
    assert 20 <= len(names) <= 40 and len(set(names)) == len(names) and kinds == kind_of(task)
    half = (len(names) + 1) // 2
    assert [kind == "base" for kind in kinds] == [place < half for place in range(len(names))]
    for name, kind in zip(names, kinds, strict=True):
        assert pretraining_knows(name) == (kind in ("base", "known")), name
        assert new_words(name) == (kind == "new word"), name
    assert {"known", "new word"} <= set(kinds)
    assert sum(word_in(name) for name in names) == kinds.count("new word")


def word_in(text: str) -> bool:
    held = {word for words in HELD_BACK.values() for word in words}
    return bool(held & set(re.findall("[a-z]+", text)))


@pytest.mark.parametrize("task", SETS)
def test_splits_and_seeds_have_other_pictures(task: str) -> None:
    pictures, labels = draw_set(task, "train", 2)
    assert pictures.shape == (64, 3, 40, 40) and labels.bincount().tolist() == [2] * 32
    assert pictures.float().std((1, 2, 3)).min() > 2
    assert torch.equal(pictures, draw_set(task, "train", 2)[0])
    assert not torch.equal(pictures, draw_set(task, "test", 2)[0])
    assert not torch.equal(pictures, draw_set(task, "train", 2, seed=1)[0])


def test_what_class_names_ask_for() -> None:
    row = dict(zip(COLUMNS, attributes_of("striped cube").tolist(), strict=True))
    assert NOUNS[row["noun"]] == "cube" and PATTERNED[row["texture"]] == "striped"
    assert row["colour"] == row["ground"] == row["size"] == -1
    row = dict(zip(COLUMNS, attributes_of("cat by the sea").tolist(), strict=True))
    assert NOUNS[row["noun"]] == "cat" and GROUNDS[row["ground"]] == "sea"
    assert NOUNS[attributes_of("cat head")[0]] == "cat head"


def test_pictures_show_what_is_asked() -> None:
    known = attributes_of("red ring").repeat(40, 1)
    known[:, COLUMNS.index("ground")], known[:, COLUMNS.index("texture")] = 0, 0
    known[:, COLUMNS.index("size")] = 2
    pictures, attributes = draw_named(Draw("open", "x"), known, 40)
    assert torch.equal(attributes[:, :5], known[:, :5]) and (attributes[:, 5] >= 0).all()
    red = (pictures[:, 0].float() - pictures[:, 1:].float().amax(1)) > 40
    assert (red.float().mean((1, 2)) > 0.08).float().mean() > 0.7
    animals = attributes_of("pig").repeat(4, 1)
    animals[:, COLUMNS.index("ground")] = GROUNDS.index("cave")
    attributes = draw_named(Draw("open", "x"), animals, 40)[1]
    assert (attributes[:, [1, 2, 3, 5]] == -1).all()


def test_the_palettes_are_named_rightly_and_disjoint() -> None:
    for pretraining in (True, False):
        for name, colours in zip(COLOURS, palette(pretraining), strict=True):
            assert len(colours) > 5 and {colour_name(rgb) for rgb in colours} == {name}
    first, second = torch.cat(palette(True)), torch.cat(palette(False))
    assert torch.cdist(first, second).min() > 0


def test_pretraining_has_nothing_that_is_held_back() -> None:
    attributes = torch.cat([captions_pool.block(k, n=120)[1] for k in range(2)])
    assert not held_back(attributes).any()
    sentences, _ = captions(Draw("pretrain", "test"), attributes.repeat(5, 1))
    assert not any(map(word_in, sentences)) and len(set(sentences)) > 600
    everything = " ".join(sentences)
    assert "a photo of a" in everything and "in a cave" in everything and "large" in everything


def test_pretraining_blocks() -> None:
    pictures, attributes = captions_pool.block(3, n=30)
    assert pictures.shape == (30, 3, 40, 40) and attributes.shape == (30, len(COLUMNS))
    assert torch.equal(pictures, captions_pool.block(3, n=30)[0])
    assert not torch.equal(pictures, captions_pool.block(4, n=30)[0])
    animal = attributes[:, 0] >= FIRST_ANIMAL
    assert animal.any() and (attributes[animal, 1] == -1).all() and (attributes[~animal, 1] >= 0).all()


def test_captions_read_as_they_should() -> None:
    known = [NOUNS.index("star"), COLOURS.index("red"), TEXTURES.index("stripes"), 2, 2, COLOURS.index("blue")]
    assert caption(known, [True] * 6, 3) == "a photo of a large red striped star on a cloudy blue background."
    assert caption(known, [False, True, False, False, False, False], 1) == "a red thing"
    known = [NOUNS.index("ostrich"), -1, -1, -1, GROUNDS.index("sea"), -1]
    assert caption(known, [True, False, False, False, True, False], 1) == "an ostrich by the sea"


def test_a_caption_is_true_of_pictures_that_agree() -> None:
    attributes = captions_pool.block(0, n=60)[1]
    said = mentions(Draw("pretrain", "said"), attributes)
    assert said.any(1).all() and not (said & (attributes < 0)).any()
    truth = true_of(attributes, said, attributes)
    assert truth.diagonal().all()
    for c in range(0, 60, 7):
        for n in range(60):
            same = all(attributes[n, k] == attributes[c, k] for k in range(6) if said[c, k])
            kin = (attributes[n, 0] >= FIRST_ANIMAL) == (attributes[c, 0] >= FIRST_ANIMAL)
            assert bool(truth[n, c]) == bool(same and kin)


def test_held_back_words_exist() -> None:
    assert all(word in WORDS[column] for column, words in HELD_BACK.items() for word in words)
