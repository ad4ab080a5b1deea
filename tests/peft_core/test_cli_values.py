"""Methods as choices, types in words, values that are read once."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pytest

from peft_core import values
from peft_core.errors import PeftError
from peft_core.jobs.cli import options
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.help import help_of
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.cli.trainer import TrainerFlags
from peft_core.registry import make_method
from peft_core.values import Range, describe


def test_methods_and_presets_as_choices() -> None:
    assert MethodChoice.accepts("lora_noah") is MethodChoice.accepts("lora")
    assert MethodChoice.preset("lora_noah")["rank"] == 8 and MethodChoice.preset("lora") == {}
    assert MethodChoice("lora_noah", {"rank": 3}).build().rank == 3


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float, "a number"),
        (int | None, "a whole number"),
        (Literal["a", 1], "one of a, 1"),
        (list[str], "a list, each a word"),
        (int | Sequence[int], "a whole number or a list, each a whole number"),
        (tuple[int, float] | None, "a list, each a whole number or a number"),
    ],
)
def test_types_in_words(hint: object, words: str) -> None:
    assert describe(hint) == words


def test_an_option_may_be_a_word_of_python() -> None:
    @command("vision")
    def write(*, as_: Literal["text", "picture"] = "text", size: Annotated[int, Range(1, 9)] = 3) -> tuple:
        """Write.

        Args:
            as_: What it becomes.
        """
        return as_, size

    layers = write.read_line(["--as", "picture", "--size", "4"])
    assert write.call(write.resolve(layers)) == ("picture", 4) and write(as_="picture") == ("picture", 3)
    assert write.call(write.resolve([("", {"as": "picture"})])) == ("picture", 3)
    assert "--as                    What it becomes. (one of text, picture; default text)" in help_of(write, "art")
    assert "(a whole number, in [1, 9]; default 3)" in help_of(write, "art")
    with pytest.raises(PeftError, match=r"--size must be in \[1, 9\], not 10"):
        write(size=10)


def test_each_value_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The line, a recipe and a default recipe that looks at the values: every value is typed once, the method made once."""
    from peft_core.jobs.cli import command as module

    typed, made = [], []
    monkeypatch.setattr(
        module, "typed", lambda value, hint, what: typed.append(what) or values.typed(value, hint, what)
    )
    monkeypatch.setattr(options, "make_method", lambda *name, **more: made.append(name) or make_method(*name, **more))

    @command("vision", default_recipe=lambda found: "digits" if found["method"].build().rank == 3 else None)
    def learn(*, method: MethodChoice = "lora", recipe: str | None = None, lr: float = 1.0, batch_size: int = 1,
              trainer: TrainerFlags = None) -> None:  # fmt: skip
        """Learn."""

    found = learn.resolve(learn.read_line(["--method.rank", "3", "--lr", "2"]))
    assert found["lr"] == 2.0 and found["batch_size"] != 1 and found["method"].build().rank == 3
    assert len(typed) == len(set(typed)) and len(made) <= 2
