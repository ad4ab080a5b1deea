"""`--edit.drop 0.05 …`: pairs of source and target, and how they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from diffusion_peft.data.concepts import Concept
from diffusion_peft.data.paired import OF_FILES, table_in, table_rows
from peft_core.errors import PeftError
from peft_core.jobs.cli.options import Choice
from peft_core.values import Range

SOURCE, TARGET = "source", "target"
WORLD = "world/edit/"
USUAL = {
    "source": (SOURCE, "input_image", "original_image", "source_image", "input"),
    "target": (TARGET, "edited_image", "target_image", "output_image", "output"),
    "instruction": ("instruction", "edit_prompt", "edit", "prompt", "text", "caption"),
}
"""Columns' names; the second are those of diffusers' scripts."""


def edit(
    source_column: str | None = None,
    target_column: str | None = None,
    instruction_column: str | None = None,
    drop: Annotated[float, Range(least=0, most=1 / 3)] | None = None,
) -> None:
    """Options of editing; pairs are known by their layout, a folder with source/ and target/ or a table with such columns.

    Args:
        source_column: Of metadata.jsonl, metadata.csv or a Hugging Face data set: the sources; the usual names by default.
        target_column: What became of them.
        instruction_column: What was done.
        drop: Share of pictures that are trained without their instruction, without their source, and without both, each; for
            guidance by either. 0.05 on UNets where not given, as in InstructPix2Pix.
    """


class EditOptions(Choice):
    """`--edit.source_column before --edit.target_column after`."""

    named, complete, brief = False, False, True

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return edit


def is_edit(settings: Mapping[str, Any]) -> bool:
    """Whether a run is trained on pairs of source and target (`settings` as `fit` has them once they are checked, or a run
    folder's config)."""
    given = settings.get("edit")
    return bool(given.options if isinstance(given, EditOptions) else given)


def looks_paired(data: str | None) -> bool:
    """Whether the data are pairs of source and target by their layout alone."""
    if not data or data.startswith(("hf/", "world/")):
        return bool(data) and str(data).startswith(("hf/", WORLD))
    place = Path(data).expanduser()
    if (place / SOURCE).is_dir() and (place / TARGET).is_dir():
        return True
    table = table_in(place)
    columns = next((row.keys() for _, row in table_rows(table)), ()) if table is not None else ()
    named = [{name + end for name in USUAL[part] for end in ("", OF_FILES)} for part in ("source", "target")]
    return all(names & {*columns} for names in named)


def check_edit(settings: dict[str, Any]) -> list[Concept]:
    """The pairs of a run as its only concept.

    Raises:
        PeftError: options that editing has no use for.
    """
    for key in ("placeholder", "initializer", "class_prompt", "prior", "masks"):
        if settings[key] is not None:
            raise PeftError(f"pairs of source and target are learnt from instructions: there is no use for --{key}.")
    if settings["data"] is None:
        raise PeftError(
            "--edit needs --data: a folder with source/ and target/, one with metadata.jsonl, or hf/<repo>."
        )
    return [Concept(str(settings["data"]), settings["prompt"])]
