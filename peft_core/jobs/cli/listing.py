"""What `list` prints: names, each with one line about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence

from peft_core.config_files import list_configs
from peft_core.files import read_text
from peft_core.registry import facts_of, method_files, preset_in

_PAPER = re.compile(
    r"([A-Z][\w’'-]*(?:(?:,| and)? [A-Z][\w’'-]*)*(?: et al\.)?), \"[^\"]{8,}?\",? ([^.;:\"()]*?\b(?:19|20)\d\d)"
)


def configs(kind: str, domain: str) -> dict[str, str]:
    """Name -> first line, a comment, of every recipe or sweep of a domain."""
    files = list_configs(kind, domain)
    return {name: next(iter(read_text(path).splitlines()), "").lstrip("# ") for name, path in files.items()}


def methods(
    domain: str, but: Container[str] = (), families: tuple[str, ...] = ("",), never: Container[str] = ()
) -> dict[str, dict[str, tuple[str, str]]]:
    """Branch -> name -> (paper, about), of the core's and the domain's methods, all `but` those; at last the presets with what
    they set. None of their files is imported.

    Args:
        families: what the families of the domain's models begin with; methods that suit none of them are left out.
        never: what none of these models has; methods that need it are left out.
    """
    packages = ("peft_core", f"{domain}_peft")

    def meant(name: str) -> bool:
        suits, needs = (facts_of(name).get(fact, ()) for fact in ("suits", "needs"))
        return (not suits or any(family.startswith(families) for family in suits)) and not any(
            n in never for n in needs
        )

    known = (name for name, place in method_files().items() if place.partition(".")[0] in packages)
    names = sorted(name for name in known if meant(name))
    branches: dict[str, dict[str, tuple[str, str]]] = {}
    for name in sorted((name for name in names if name not in but), key=lambda name: (branch_of(name), name)):
        facts = facts_of(name)
        branches.setdefault(branch_of(name), {})[name] = (paper_of(facts.get("doc", "")), facts["about"])
    for name, path in list_configs("method", domain).items():
        settings = dict(preset_in(path))
        method = settings.pop("method")
        if not meant(method):
            continue
        words = f"{method}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
        branches.setdefault("presets", {})[name] = ("", words if len(words) <= 110 else f"{words[:109]}…")
    return branches


def paper_of(docstring: str) -> str:
    """`Hu et al., ICLR 2022`, of the paper that a method's docstring names first; "" where it names none."""
    found = _PAPER.search(" ".join(docstring.split()))
    return f"{found[1]}, {found[2]}" if found else ""


def branch_of(name: str) -> str:
    """The folder that a method's file lies in: `adapters`, `reparameterized` …; the package where it is a wing's own."""
    package, _, inside = method_files()[name].partition(".methods.")
    return inside.rpartition(".")[0] or package


def show(
    what: str, domain: str, own: Mapping[str, Callable[[], Mapping[str, str]]], families: tuple[str, ...] = ("",),
    never: Container[str] = (),
) -> None:  # fmt: skip
    """Prints a list: one of a program's `own`, else what every program has: methods (see there), data, recipes, sweeps."""
    if what == "methods":
        show_methods(methods(domain, families=families, never=never))
        return
    if what in own:
        rows = own[what]()
    elif what == "data":
        from peft_data import list_data

        rows = list_data()
    else:
        rows = configs(what.removesuffix("s"), domain)
    columns([(name, about) for name, about in rows.items()])


def show_methods(branches: Mapping[str, Mapping[str, tuple[str, str]]]) -> None:
    """Prints methods under their branches: name, paper, one line about it."""
    width = max((len(name) for rows in branches.values() for name in rows), default=0)
    for number, (branch, rows) in enumerate(branches.items()):
        print(("\n" if number else "") + f"{branch}:")
        columns([(f"  {name}", *words) for name, words in rows.items()], (min(40, width + 2),))


def columns(rows: Sequence[Sequence[str]], least: Sequence[int] = ()) -> None:
    """Prints rows whose columns stand under one another; a column that is empty in all rows is left out."""
    kept = [number for number in range(len(rows[0])) if any(row[number] for row in rows)] if rows else []
    most = [40 if number else 72 for number in kept]  # names stand whole
    widths = [
        max([*least[n : n + 1], *(min(cut, len(row[n])) for row in rows)]) for n, cut in zip(kept, most, strict=True)
    ]
    for row in rows:
        cells = [f"{row[number]:<{width}}" for number, width in zip(kept, widths, strict=True)]
        print("  ".join(cells).rstrip())
