"""`--galore.rank 128`, `--mezo.eps 1e-2`: settings of one optimiser alone, which have no effect on another."""

from __future__ import annotations

from collections.abc import Callable

from peft_core.jobs.cli.options import Choice
from peft_core.values import Count, Positive


def _galore(rank: Count = 4, gap: Count = 500, scale: Positive = 4.0) -> None:
    """Of `--optimizer galore`.

    Args:
        rank: Of the subspace that holds Adam's moments of a matrix.
        gap: Steps after which it is chosen anew.
        scale: Of what comes back from it.
    """


def _mezo(eps: Positive = 1e-3) -> None:
    """Of `--optimizer mezo`.

    Args:
        eps: How far the two forwards of a step lie from the weights.
    """


class GaLoreFlags(Choice):
    """`--galore.rank 128`."""

    named = False

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return _galore


class MeZOFlags(Choice):
    """`--mezo.eps 1e-2`."""

    named = False

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return _mezo
