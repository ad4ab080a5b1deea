"""Every architecture of timm and open_clip has an anatomy, found on the meta device: a sample here, all in the slow part."""

import pytest

from benchmarks.described import FAMILIES, main

SAMPLE = 211
"""Every so many names are tried in the fast part."""


@pytest.mark.parametrize("every", [SAMPLE, pytest.param(1, marks=pytest.mark.slow)])
def test_timm(every: int):
    known, of = main(["--of", "timm", "--every", str(every)])["timm"]
    assert known == of >= 1_000 // every


@pytest.mark.parametrize("every", [70, pytest.param(1, marks=pytest.mark.slow)])
def test_open_clip(every: int):
    known, of = main(["--of", "open_clip", "--every", str(every)])["open_clip"]
    assert known == of >= 144 // every


def test_families_of_transformers():
    assert main(["--of", "transformers"])["transformers"] == (len(FAMILIES), len(FAMILIES)) == (11, 11)
