"""Names in any script on a figure: how wide they are, and fonts of this machine that have their signs."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from peft_core.jobs.runs.process import tell

PREFERRED = ("NotoSans", "NotoSansCJK", "DroidSansFallback", "WenQuanYi", "msyh", "meiryo", "malgun", "PingFang", "Hiragino",
             "ArialUnicode", "arial", "segoeui", "Amiri", "FreeSans", "Unifont", "unifont")  # fmt: skip
"""How the files of fonts begin that are tried first, in this order: sans serif and of many signs."""
PACKAGES = {
    "CJK": "fonts-noto-cjk", "HIRAGANA": "fonts-noto-cjk", "KATAKANA": "fonts-noto-cjk", "HANGUL": "fonts-noto-cjk",
    "EMOJI": "fonts-symbola",
}  # fmt: skip
"""Script, the first word of a sign's name in Unicode -> Debian's and Ubuntu's package of a font that has it."""
OTHERS = "fonts-noto-core"
_told: set[str] = set()


def columns(text: str) -> int:
    """How wide a text is, in letters: signs of East Asia count two, marks above others none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, broken between words, within a word where it is longer."""
    lines, line = list[str](), ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if columns(joined) <= width:
            line = joined
            continue
        lines += [line] if line else []
        line = ""
        for sign in word:
            if columns(line + sign) > width:
                lines.append(line)
                line = ""
            line += sign
    return [*lines, line] if line else lines


def cut(text: str, longest: int) -> str:
    """A text of at most so many columns, its middle left out where it is longer."""
    if columns(text) <= longest:
        return text
    first, last = "", ""
    for sign in text:
        if columns(first + sign) > longest // 2:
            break
        first += sign
    for sign in reversed(text):
        if columns(sign + last) > (longest - 1) // 2:
            break
        last = sign + last
    return f"{first}…{last}"


def from_right(text: str) -> bool:
    """Whether it has signs of a script that is written from the right."""
    return any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)


def isolated(name: str) -> str:
    """A name as part of a sentence of a page: one from the right turns nothing around that stands beside it."""
    return f"\u2068{name}\u2069" if from_right(name) else name


def isolate(sentence: str, names: Iterable[str]) -> str:
    """A sentence with those of the names `isolated` that stand in it, whole or cut to 40 columns."""
    known = {part for name in names if from_right(name) for part in (name, cut(name, 40))}
    if not known:
        return sentence
    longest_first = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    return re.sub(longest_first, lambda found: isolated(found[0]), sentence)


def suit(figure: Any) -> None:
    """Gives the texts of a matplotlib figure fonts that have their signs, and says once of each script what is missing."""
    from matplotlib import font_manager, ft2font
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    own = font_manager.findfont(font_manager.FontProperties())
    signs = {sign for text in texts for sign in text.get_text() if not sign.isspace()}
    missing = signs - signs_of(own)
    if missing:
        found = families(frozenset(missing))
        for text in texts:
            if missing & set(text.get_text()):
                text.set_fontfamily(list(dict.fromkeys((*text.get_fontfamily(), *(name for name, _ in found)))))
        _tell_missing(missing - {sign for _, has in found for sign in has})
    if from_right("".join(signs)) and not hasattr(ft2font, "__libraqm_version__"):
        _tell_order()


def _tell_missing(missing: set[str]) -> None:
    """Says it of the scripts that were not told of yet, with the packages that have them."""
    packages: dict[str, str] = {}
    for sign in sorted(missing):
        script = "EMOJI" if 0x1F000 <= ord(sign) < 0x20000 else unicodedata.name(sign, "UNKNOWN").split()[0]
        if script not in _told:
            packages[script] = PACKAGES.get(script, OTHERS)
    if packages:
        _told.update(packages)
        scripts, names = ", ".join(packages).lower(), " and ".join(dict.fromkeys(packages.values()))
        tell(f"note: no font of this machine has signs of some names ({scripts}), and figures show boxes; report.html has "
             f"the names. Debian's and Ubuntu's fonts for them: {names}")  # fmt: skip


@functools.cache
def _tell_order() -> None:
    tell(
        "note: this matplotlib writes right-to-left names letter by letter from the left; 3.11 and later write them right"
    )


@functools.cache
def families(missing: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """Names of fonts that have the missing signs, each with those that it adds; few fonts rather than many."""
    from matplotlib import font_manager

    left, found = set(missing), list[tuple[str, frozenset[str]]]()
    for path in _fonts():
        has = frozenset(left & signs_of(path))
        if not has:
            continue
        if path not in {font.fname for font in font_manager.fontManager.ttflist}:
            font_manager.fontManager.addfont(path)  # installed after matplotlib made its list
        name = next(font.name for font in font_manager.fontManager.ttflist if font.fname == path)
        found.append((name, has))
        left -= has
        if not left:
            break
    return found


@functools.cache
def _fonts() -> list[str]:
    """Files of the regular fonts of this machine, the preferred first."""
    from pathlib import Path

    from matplotlib import font_manager

    def place(path: str) -> tuple[float, str]:
        stem = Path(path).stem
        first = next((n for n, start in enumerate(PREFERRED) if stem.startswith(start)), len(PREFERRED))
        return first + (0.5 if "Mono" in stem or "Serif" in stem else 0), stem

    styles = ("bold", "italic", "oblique", "light", "black", "thin", "medium", "condensed", "lastresort")
    paths = {path for path in font_manager.findSystemFonts() if not any(s in Path(path).stem.lower() for s in styles)}
    return sorted(paths, key=place)


@functools.cache
def signs_of(path: str) -> frozenset[str]:
    """What a font's file has; nothing where it cannot be read or drawn from."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()


def most_columns(names: Sequence[str]) -> int:
    """Of the widest line among names."""
    return max((columns(line) for name in names for line in name.splitlines()), default=0)
