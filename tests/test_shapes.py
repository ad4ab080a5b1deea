"""Shapes that functions declare are checked while the tests run, whatever stands above the function."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated

import pytest
import torch
from torch import Tensor

from tests.shapes import watch


class Holder:
    @torch.no_grad()
    def doubled(self, x: Annotated[Tensor, "B 2"]) -> Annotated[Tensor, "B 2"]:
        return 2 * x


def test_a_decorated_method_in_a_file_of_postponed_annotations_is_checked() -> None:
    module = ModuleType(__name__)
    module.Holder = Holder  # type: ignore[attr-defined]
    watch(module)
    assert Holder().doubled(torch.ones(3, 2)).sum() == 12
    with pytest.raises(AssertionError, match=r"x of Holder.doubled is \(3, 4\), declared B 2"):
        Holder().doubled(torch.ones(3, 4))
