"""Ranges of numbers that several commands take."""

from typing import Annotated

from peft_core.values import Range

Side = Annotated[int, Range(1, 8192)]
"""Of a picture in pixels; a base says which multiples it takes."""
Denoising = Annotated[int, Range(1, 1000)]
"""Steps from noise to a picture; a base was trained on 1,000 times."""
Vectors = Annotated[int, Range(1, 75)]
"""Of a new token; a prompt has room for 75 tokens."""
