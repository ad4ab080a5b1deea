"""What `list` prints: names, each with one line about it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from peft_core.config_files import list_configs
from peft_core.files import read_text
from peft_core.registry import describe_method, facts_of, method_files, preset_in


def configs(kind: str, domain: str) -> dict[str, str]:
    """Name -> first line, a comment, of every recipe or sweep of a domain."""
    files = list_configs(kind, domain)
    return {name: next(iter(read_text(path).splitlines()), "").lstrip("# ") for name, path in files.items()}


def methods(
    domain: str, but: Container[str] = (), families: tuple[str, ...] = ("",), never: Container[str] = ()
) -> dict[str, str]:
    """Name -> about, of the core's and the domain's methods, then of their presets with what they set: all `but` those
    that are named, that suit no family beginning so, or that need what no model of the domain has. No file is imported."""
    packages = ("peft_core", f"{domain}_peft")

    def meant(name: str) -> bool:
        facts = facts_of(name)
        suits, needs = facts.get("suits", ()), facts.get("needs", ())
        able = not suits or any(family.startswith(families) for family in suits)
        return name not in but and able and not any(need in never for need in needs)

    names = sorted(name for name, place in method_files().items() if place.partition(".")[0] in packages)
    known = set(names)
    rows = {name: describe_method(name) for name in names if meant(name)}
    for name, path in list_configs("method", domain).items():
        settings = dict(preset_in(path))
        method = settings.pop("method")
        if method in known and method not in rows:
            continue
        rows[name] = f"{method}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
    return rows


def show(what: str, domain: str, own: Mapping[str, Callable[[], Mapping[str, str]]]) -> None:
    """Prints a list: one of a program's `own`, else what every program has: methods, data, recipes, sweeps."""
    if what in own:
        rows = own[what]()
    elif what == "methods":
        rows = methods(domain)
    elif what == "data":
        from peft_data import list_data

        rows = list_data()
    else:
        rows = configs(what.removesuffix("s"), domain)
    width = min(48, max(map(len, rows), default=0))
    for name, about in rows.items():
        print(f"{name:<{width}}  {about}")
