"""What of A1111's and ComfyUI's prompt language stands in a text, which here is words like any others."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)
_WEIGHT = re.compile(r"[(\[][^()\[\]]*?:\s*[+-]?\d*\.?\d+\s*[)\]]")
_BRACKETS = re.compile(r"\(\(+[^()]+\)+|\[[^\[\]]+\]")
_KEYWORD = re.compile(r"(?<!\w)(?:BREAK|AND|ADDCOMM|ADDROW|ADDCOL)(?!\w)")


def foreign_syntax(text: str) -> list[str]:
    """Pieces of a text that such programs would act on: `<lora:x:1>`, `(red:1.3)`, `[x]`, `((x))`, `BREAK`."""
    found: list[str] = []
    for pattern in (_NETWORK, _WEIGHT, _BRACKETS, _KEYWORD):
        found += [piece for piece in pattern.findall(text) if not any(piece in known for known in found)]
    return found


def notes_on(texts: Iterable[str]) -> list[str]:
    """What is to be said of such pieces in prompts or captions, one line for networks and one for the rest."""
    pieces = dict.fromkeys(piece for text in texts for piece in foreign_syntax(text))
    networks = [piece for piece in pieces if _NETWORK.fullmatch(piece)]
    others = [piece for piece in pieces if piece not in networks]
    notes = []
    if networks:
        file = networks[0].strip("<>").split(":")[1]
        notes.append(
            f"{networks[0]} loads nothing here, it is words like any others: give --adapter {file}.safetensors:1"
        )
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        notes.append(f"{shown}: weights, brackets and keywords of A1111's prompts are words like any others here")
    return notes
