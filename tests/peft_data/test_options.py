"""Options that several functions take alike."""

import inspect

from peft_data.options import arguments, takes


def speed(*, fast: bool = False, wheels: int = 4) -> None:
    """Options of every car.

    Args:
        fast: How.
        wheels: How many.
    """


def colour(*, colour: str, wheels: int = 3) -> None:
    """Args:
    colour: Which.
    """


def test_own_options_stand_over_those_taken() -> None:
    @takes(speed, colour, wheels=6)
    def drive(*, where: str, fast: "bool | None" = None, **common: object) -> dict:
        """Drive.

        Args:
            where: To.
            wheels: Six of them.

        Raises:
            ValueError: never.
        """
        return arguments(locals())

    assert str(inspect.signature(drive)) == (
        "(*, where: str, fast: 'bool | None' = None, wheels: int = 6, colour: str) -> dict"
    )
    assert drive.__annotations__["fast"] == bool | None and drive.__annotations__["wheels"] is int
    said = inspect.getdoc(drive)
    assert said is not None and said.startswith("Drive.\n\nArgs:") and said.endswith("Raises:\n    ValueError: never.")
    assert said.index("wheels: How many") < said.index("wheels: Six of them")  # the last word on an option counts
    assert drive(where="home", wheels=2) == {"where": "home", "fast": None, "wheels": 2}


def test_what_is_left_out() -> None:
    @takes(speed, but=("wheels",))
    def walk(**common: object) -> None:
        """Walk."""

    assert list(inspect.signature(walk).parameters) == ["fast"]
    assert inspect.getdoc(walk).split("\n\n")[0] == "Walk."
