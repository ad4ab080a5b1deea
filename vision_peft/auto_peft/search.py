"""What is searched, and what is proposed next: widths and blocks, by a Gaussian process on both objectives (Optuna)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from peft_core.errors import PeftError

MODULES = ("serial", "parallel", "tokens")
HALVINGS = 10


class Configuration(NamedTuple):
    """A width of each module, 0 for none, and which blocks are on."""

    serial: int
    parallel: int
    tokens: int
    layers: tuple[bool, ...]

    def settings(self) -> dict[str, Any]:
        """Those of the method."""
        return {name: getattr(self, name) for name in MODULES} | {
            "blocks": [i for i, on in enumerate(self.layers) if on]
        }

    def __str__(self) -> str:
        return "".join("01"[on] for on in self.layers)

    @property
    def empty(self) -> bool:
        return not any(self.layers) or not any(self[:3])


@dataclass(frozen=True)
class Space:
    """Widths D, D/2, D/4 … 1 and 0 of three modules, and a bit a block, for a stream of width D."""

    width: int
    depth: int

    @property
    def widths(self) -> list[int]:
        return [0, *sorted({max(1, self.width >> k) for k in range(HALVINGS)})]

    def of(self, numbers: Sequence[int]) -> Configuration:
        """From a place in `widths` for each module, and 0 or 1 for each block."""
        serial, parallel, tokens = (self.widths[n] for n in numbers[:3])
        return Configuration(serial, parallel, tokens, tuple(map(bool, numbers[3:])))

    def numbers(self, configuration: Configuration) -> list[int]:
        return [self.widths.index(width) for width in configuration[:3]] + [int(on) for on in configuration.layers]

    def draw(self, chance: Random) -> Configuration:
        while True:
            numbers = [chance.randrange(len(self.widths)) for _ in MODULES] + [
                chance.randrange(2) for _ in range(self.depth)
            ]
            if not (found := self.of(numbers)).empty:
                return found


class Scored(NamedTuple):
    """A configuration, the share of the backbone's parameters that it inserts, and its accuracy on val."""

    configuration: Configuration
    share: float
    accuracy: float


def propose(
    space: Space, known: Sequence[Scored], seen: set[Configuration], count: int, seed: int
) -> list[Configuration]:
    """New configurations, each expected to add most to the area under the front; a random one where that is not new.

    Args:
        known: what was scored.
        seen: what was proposed before.
        seed: with the same one, and the same scores, the same come out.
    """
    optuna, chance, found = load_optuna(), Random(seed), list[Configuration]()
    names = [*MODULES, *(f"block{i}" for i in range(space.depth))]
    highest = [len(space.widths) - 1] * len(MODULES) + [1] * space.depth
    kinds = {name: optuna.distributions.IntDistribution(0, most) for name, most in zip(names, highest, strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's word that this sampler may change
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for each in known:
            params = dict(zip(names, space.numbers(each.configuration), strict=True))
            values = [each.share, each.accuracy]
            study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, values=values))
        for _ in range(count):
            params = study.ask(kinds).params
            new = space.of([params[name] for name in names])
            while new.empty or new in seen or new in found:
                new = space.draw(chance)
            found.append(new)
    return found


def front(scored: Sequence[Scored]) -> list[Scored]:
    """Those that none with as few parameters beats, from small to large."""
    found: list[Scored] = []
    for each in sorted(scored, key=lambda each: (each.share, -each.accuracy)):
        if not found or each.accuracy > found[-1].accuracy:
            found.append(each)
    return found


def load_optuna() -> Any:
    """The library, which says nothing but errors.

    Raises:
        PeftError: it is not installed.
    """
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PeftError("auto_peft searches with Optuna: pip install 'visual-peft[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
