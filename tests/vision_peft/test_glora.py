"""GLoRA's search: one form drawn a step, as its authors' layer has it, and evolution on a finished run."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from peft_core import PeftError, adapt, count_parameters, load_run
from peft_core.lifecycle import after_step, own_grafts
from peft_core.methods.reparameterized.glora import ALLOWED, ORDER, Drawn, Generalized, GLoRA
from tests.tiny import vit
from vision_peft.commands import main
from vision_peft.fit import fit
from vision_peft.glora import Layers


def drawn() -> Drawn:
    torch.manual_seed(0)
    change = Drawn(torch.zeros(6, 4).double(), None, 2, ("lora", "lora", "lora", "vector", "vector"), True)
    for parameter in change.parameters():
        torch.nn.init.normal_(parameter)
    return change.eval()


@pytest.mark.parametrize("word", ["lllvv", "vcvcn", "cnlnc", "nvnvc"])
def test_each_form_is_a_part_of_the_richest_as_in_the_authors_layer(word: str) -> None:
    weight, bias, change = torch.randn(6, 4).double(), torch.randn(6).double(), drawn()

    def path(form: Any, letter: str) -> Any:
        if letter == "n":
            return torch.zeros(1).double()
        if form.value is not None:
            return form.value.flatten() if letter == "v" else form.value.flatten()[0]
        down, up = form.down, form.up
        return down @ up if letter == "l" else down[:, :1] if letter == "v" else down[0, 0]

    a, b, c, d, e = (path(getattr(change, name), letter) for name, letter in zip("ABCDE", word, strict=True))
    expected = weight + weight * a + b
    shift = bias + bias * d + e + (weight @ c.expand(4, 1)).flatten()
    change.use(word)
    narrow = Generalized(weight, None, 2, [{"l": "lora", "v": "vector", "c": "constant", "n": "none"}[x] for x in word],
                         True)  # fmt: skip
    change.give(narrow)
    for one in (change, narrow):
        torch.testing.assert_close(one(weight), expected)
        shifted = one.bias(bias) + (one.shift(weight) if one.C is not None else 0)
        torch.testing.assert_close(shifted, shift)
    assert change.size(word) == sum(p.numel() for p in narrow.parameters())
    for name, letter in zip("ABCDE", word, strict=True):  # the same while it trains
        getattr(change, name).drawn.fill_(ORDER.index(letter))
    torch.testing.assert_close(change.train()(weight), expected)


def test_every_step_draws_for_every_layer_and_the_seed_decides() -> None:
    def words(seed: int) -> list[list[int]]:
        model = adapt(vit(depth=1)(), "glora", rank=1, search=True, seed=seed)
        method, found = next(iter(model.__dict__["_peft_record"].adaptations.values())).method, []
        for step in range(3):
            after_step(model, (step + 1) / 3)
            found.append([int(f.drawn) for change in own_grafts(model, method, Drawn) for f in change.forms().values()])
        return found

    assert words(1) == words(1) != words(2)
    assert len({tuple(each) for each in words(1)}) == 3
    with pytest.raises(PeftError, match="searches among all forms"):
        adapt(vit(depth=1)(), "glora", search=True, A="vector")


def test_layers_count_shrink_and_mix() -> None:
    layers, chance = Layers([drawn(), drawn()]), Random(0)
    words = ("lllvv", "vcvcn")
    assert layers.count(("nnnnn",) * 2) == 0
    while layers.count(words):
        smaller = layers.shrink(words, chance)
        assert (
            sum(a != b for one, other in zip(words, smaller, strict=True) for a, b in zip(one, other, strict=True)) == 1
        )
        words = smaller
    one, other = layers.draw(chance, 2), layers.draw(chance, 2)
    assert all(letter in (a, b) for word, x, y in zip(layers.cross(one, other, chance), one, other, strict=True)
               for letter, a, b in zip(word, x, y, strict=True))  # fmt: skip
    assert layers.mutate(one, chance, 0.0, 0.0) == one != layers.mutate(one, chance, 1.0, 0.0)
    assert all(letter in known for word in one for letter, known in zip(word, ALLOWED, strict=True))


def test_another_run_is_told_apart(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["glora", "--run", str(short_run), "--out", str(tmp_path / "found")]) == 2
    assert "was trained with lora: fit --method glora --method.search true" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_makes_a_run(tmp_path: Path, small_data: str, capsys: pytest.CaptureFixture) -> None:
    run, out = tmp_path / "net", tmp_path / "found"
    small = {"recipe": "digits", "batch_size": 20, "eval_on": "val", "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    fit(data=small_data, out=str(run), method=GLoRA(search=True, rank=2), lr=3e-4, **small)  # type: ignore[arg-type]
    few = ["--population", "4", "--generations", "2", "--budget", "40000"]
    assert main(["glora", "--run", str(run), "--out", str(out), *few]) == 0
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert count_parameters(load_run(out).model).inserted == found["parameters"] <= 40_000
    capsys.readouterr()
    assert main(["test", "--run", str(out)]) == 0
