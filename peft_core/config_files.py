"""Where YAML files named on the command line live: inside the installed package, else in the checkout."""

from pathlib import Path

from peft_core.errors import PeftError, nearest


def config_root() -> Path:
    """The folder that holds vision/ clip/ diffusion/, each with recipe/ method/ sweep/."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def list_configs(kind: str, domain: str = "*") -> dict[str, Path]:
    """Name -> file of every recipe, method preset or sweep (`kind`); names of files in subfolders hold a slash."""
    found = {}
    for folder in sorted(config_root().glob(f"{domain}/{kind}")):
        for path in sorted(folder.rglob("*.yaml")):
            found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def find_config(kind: str, name: str, domain: str = "*") -> Path:
    """The file of that name, else `name` itself as a path; a name wins over a path and `./` forces the path."""
    known = list_configs(kind, domain)
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise PeftError(f'unknown {kind} "{name}"{nearest(name, known)} (known: {", ".join(sorted(known)) or "none"}).')
