"""Class names as token ids with places for context, how they are packed, and names that do not do."""

import open_clip
import pytest
import torch

from clip_peft.text.packing import bins_of, choose_bins, pack, shared_tokens
from clip_peft.text.prompts import alike, checked_names, make_prompts, places_among, told_apart
from clip_peft.text.run import TextPass
from clip_peft.text.tower import TextTower
from peft_core import PeftError
from tests.clip_peft.models import LENGTH, clip, prompts_of, random, tokenizer


def test_rows_hold_every_class_once_and_no_more_than_fits():
    lengths = [3, 14, 4, 4, 7, 3, 9, 5] * 30
    for width in (14, 24, 48):
        rows = bins_of(lengths, width)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in row) <= width for row in rows)
    width, rows = choose_bins(lengths)
    assert len(rows) * width <= 1.02 * sum(lengths)


def test_shared_tokens():
    model = clip()
    for position, unified, expected in [("end", True, 6), ("middle", True, 3), ("front", True, 1), ("end", False, 1)]:
        prompts = prompts_of(model, 5, position)
        assert shared_tokens(prompts.ids, prompts.slots, prompts.pooled, unified) == expected
    one = prompts_of(model, 5, names=["tench"])
    assert pack(one, slice(0, 1), True, torch.device("cpu")).shared == int(one.pooled[0])


def test_prompt_layouts():
    model = clip()
    sos, eot, dot = 49406, 49407, 269
    name = tokenizer().encode("great white shark")
    for position, slots in [("end", [-1, 0, 1, 2, 3, 4, *[-1] * 5]), ("front", [*[-1] * 4, 0, 1, 2, 3, 4, -1, -1]),
                            ("middle", [-1, 0, 1, *[-1] * 3, 2, 3, 4, -1, -1])]:  # fmt: skip
        prompts = prompts_of(model, 5, position)
        assert prompts.slots[1, :11].tolist() == slots and (prompts.slots[1, 11:] == -1).all()
        kept = prompts.ids[1][(prompts.slots[1] < 0)]
        assert kept[: 3 + len(name)].tolist() == [sos, *name, dot, eot] and not kept[3 + len(name) :].any()
        assert prompts.pooled[1] == 10


@pytest.mark.parametrize(
    "names, context, message",
    [
        ([], 0, "class_names is empty: name at least one class."),
        ("cat", 0, 'class_names is the single text "cat": pass a list of names.'),
        (["cat", " "], 0, "class name number 2 is empty: give every class a name."),
        (["cat", None], 0, "class name number 2 is None, no text: give every class a name."),
        (7, 0, "class_names is 7: pass a list of names."),
        (["cat", "cat " * 30], 4, f'class name "{" ".join(["cat"] * 30)}" is 13 tokens too long for a text of 24 beside 4 '
         "context tokens: shorten it or use fewer context tokens."),
    ],
)  # fmt: skip
def test_bad_names(names, context, message):
    with pytest.raises(PeftError) as error:
        prompts_of(clip(), context, names=names)
    assert str(error.value) == message


def test_a_name_may_stand_there_twice_and_columns_are_told_apart_by_their_place():
    names = ["missile", "red_ring", "missile", "Missile"]
    assert checked_names(names) == tuple(names)  # as they are given
    assert told_apart(names) == ("missile", "red_ring", "missile (2)", "Missile")
    assert places_among(["missile", "missile"], names) == (0, 2) and places_among(["red ring"], names) == (1,)
    assert places_among(["missile"] * 3, names) is None and places_among(["tench"], names) is None
    assert alike(tokenizer(), names) == [("missile", "missile", "Missile")]
    assert prompts_of(clip(), names=names).names == tuple(names)
    assert torch.equal(prompts_of(clip(), names=["red_ring"]).ids, prompts_of(clip(), names=["red ring"]).ids)


def test_names_of_nothing_but_punctuation_with_a_tokenizer_that_strips_it():
    bare = open_clip.SimpleTokenizer(context_length=LENGTH, clean="canonicalize")
    prompts = make_prompts(TextTower(clip()), bare, ["?!", "cat"], "{}.", 3)
    assert (prompts.slots >= 0).sum(1).tolist() == [3, 3]
    assert (prompts.ids != 49407).sum(1).tolist() == [LENGTH - 1] * 2  # nothing but the mark at the end pools


def test_bad_templates_and_shapes():
    model = clip()
    for bad, kind in [(dict(template="a photo"), "must hold {} once"), (dict(position="back"), "none of end"),
                      (dict(position="front", template="a {}"), "must start with {}")]:  # fmt: skip
        with pytest.raises(PeftError, match=kind):
            prompts_of(model, 2, **bad)
    run = TextPass(model, prompts_of(model, 2))
    with pytest.raises(PeftError, match="pass their vectors"):
        run()
    with pytest.raises(PeftError, match="does not fit 7 classes with 2 context tokens of width 32"):
        run(random(2, 16))
    with pytest.raises(PeftError, match="3 deep prompts need 4 text blocks, but there are 3"):
        run(random(2, 32), [random(2, 32)] * 3)
    small = clip(vocab_size=1000)
    with pytest.raises(PeftError, match="pass the model's own tokenizer"):
        prompts_of(small)
    with pytest.raises(PeftError, match="has no text tower"):
        TextTower(torch.nn.Linear(2, 2))
