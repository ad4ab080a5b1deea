"""Adapters put onto a base: run folders of this program, and files of other tools, told by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusion_peft.base.bases import Base
from diffusion_peft.base.families import titles
from diffusion_peft.base.tokens import add_vectors, place_tokens
from diffusion_peft.files.custom_diffusion import is_concept, load_concept, read_concept
from diffusion_peft.files.embeddings import embedding_of, is_embedding
from diffusion_peft.files.source import open_content
from diffusion_peft.formats import import_adapter
from peft_core.adapter_file import load_adapter
from peft_core.attach import is_inserted, record_of
from peft_core.errors import PeftError
from peft_core.jobs.hub.precision import in_few_bits, methods_of
from peft_core.jobs.runs.folder import CONFIG, read_run_config
from peft_core.jobs.runs.process import tell
from peft_core.saved.card import read_card, read_weights

OWN = "diffusion_peft fit"


def config_of(folder: Path) -> dict[str, Any] | None:
    """The config of a run folder; None of anything else.

    Raises:
        PeftError: a run of another program or command.
    """
    if not (folder / CONFIG).is_file():
        return None
    config = read_run_config(folder)
    if config["command"] != OWN:
        program, _, what = str(config["command"]).partition(" ")
        remedy = f"use it with {program}" if program != OWN.split()[0] else "name one of its runs"
        raise PeftError(f"{folder} is no run of `{OWN}` but one of `{program} {what or 'fit'}`: {remedy}.")
    return config


def split_scale(text: str) -> tuple[str, float | str]:
    """PATH:SCALE, of an embedding file PATH:TOKEN, or PATH alone at 1.

    Raises:
        PeftError: nothing at PATH.
    """
    path, colon, rest = text.rpartition(":")
    if Path(text).expanduser().exists() or not colon:
        path, rest = text, ""
    check_there(Path(path).expanduser())
    try:
        return path, float(rest) if rest else 1.0
    except ValueError:
        return path, rest


def check_there(path: Path) -> None:
    """Raises PeftError: nothing is there."""
    if not path.exists():
        raise PeftError(f"there is no adapter {path}: give a run folder or a file, with :SCALE after it if you like.")


def keep_off(out: Path, adapters: Iterable[str]) -> None:
    """Raises PeftError: what is to be written would go over an adapter that is read."""
    target = out.expanduser().absolute()
    for path in adapters:
        source = Path(path).expanduser().absolute()
        own = source / "adapter" if source.is_dir() else source
        if target.is_relative_to(own):
            raise PeftError(f"--out {out} would go over the adapter {own}: give another place.")


def short_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each adapter, all different, that can stand in a module's name."""
    stems = ["".join(c if c.isalnum() else "_" for c in folder.absolute().stem) for folder in folders]
    return [f"a{number}_{stem}" for number, stem in enumerate(stems)]


def add_run(base: Base, known: dict[str, int], folder: Path, name: str) -> dict[str, Any]:
    """A run's adapter on the base, its adaptations called `name__…`; its card.

    Raises:
        PeftError: no adapter yet, another kind of base, two adapters that overwrite the same part.
    """
    parts = sorted(path.name for path in (folder / "adapter").glob("*") if (path / "adapter.json").is_file())
    if not parts:
        raise PeftError(f"{folder} has no adapter yet: give its `fit` command again, which goes on where it stopped.")
    for part in parts:
        card = read_card(folder / "adapter" / part)
        if card.get("kind") != base.kind:
            raise PeftError(
                f"{folder} was trained on {titles().get(card.get('kind', ''), 'another model')} ({card.get('base')}), but "
                f"{base.name} is {base.family.title}: give --base that one."
            )
        if part != base.denoiser and part not in base.text_parts:
            raise PeftError(f"{folder} has an adapter of {part}, which {base.name} does not have.")
        model = base.part(part)
        if part == base.denoiser and "_peft_record" not in model.__dict__:
            in_few_bits(model, read_run_config(folder), *methods_of(card))
        taken = list(record_of(model).adaptations.values()) if "_peft_record" in model.__dict__ else []
        overwrites = not all(map(is_inserted, read_weights(folder / "adapter" / part)))
        if overwrites and any(adaptation.trained for adaptation in taken):
            raise PeftError(
                f"{folder} and another of these adapters both overwrite weights of the {part}, so they cannot stand side by "
                "side: `diffusion_peft join` joins Custom Diffusion runs."
            )
        load_adapter(model, folder / "adapter" / part, prefix=f"{name}__")
        if card.get("tokens") and part in base.text_parts:
            place_tokens(base, known, part, card["tokens"], f"{name}__tokens")
        model.requires_grad_(False).eval()
    return card


def add_file(
    base: Base, known: dict[str, int], file: Path, name: str, weight: float | str, allow_pickle: bool, partial: bool
) -> bool:
    """A LoRA, embedding or Custom Diffusion file on the base; whether what it adds has a scale.

    Args:
        weight: its scale, or the token of an embedding file.
        partial: go without the parts of a LoRA file that find no place.

    Raises:
        PeftError: whatever is wrong with the file, a scale or token that its kind has no use for.
    """
    content = open_content(file, allow_pickle)
    if is_embedding(content.values):
        if weight != 1.0 and not isinstance(weight, str):
            raise PeftError(f"{file} is an embedding, which has no scale: give it without :{weight:g}.")
        token, vectors = embedding_of(content, weight if isinstance(weight, str) else None)
        add_vectors(base, known, token, vectors, str(file))
        _say_token(file, token, len(vectors[0]))
        return False
    if isinstance(weight, str):
        raise PeftError(f"{file} takes a number as its scale, not {weight}: a token's name goes with embedding files.")
    if is_concept(content.values):
        if weight != 1.0:
            raise PeftError(f"{file} overwrites weights and has no scale: give it without :{weight:g}.")
        load_concept(base.part(base.denoiser), read_concept(content))
        return False
    models = base.part(base.denoiser), base.text_encoders
    imported = import_adapter(*models, content, name=f"{name}__file", strict=not partial)
    tell(f"{file}: {imported}")
    for token, vectors in imported.embeddings.items():
        add_vectors(base, known, token, vectors, str(file))
        _say_token(file, token, len(vectors[0]))
    return True


def _say_token(file: Path, token: str, vectors: int) -> None:
    count = "1 vector" if vectors == 1 else f"{vectors} vectors"
    tell(f"{file.name}: the token {token}, {count}; it acts where --prompt or --negative has it")
