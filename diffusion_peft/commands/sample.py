"""`diffusion_peft sample`: pictures drawn with a run, or with several adapters on one base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from diffusion_peft.base.prompt_syntax import notes_on
from diffusion_peft.base.texts import has_token
from diffusion_peft.commands.ranges import Denoising, Side
from diffusion_peft.control.use import read_conditions
from diffusion_peft.drawing.composing import Way
from diffusion_peft.drawing.draw import Drawing, film_of, grid, png_of
from diffusion_peft.use.adapters import split_scale
from diffusion_peft.use.run import combine
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.runs.outputs import out_folder
from peft_core.jobs.runs.process import tell
from peft_core.values import Count, Range, Seed, Share


@command("diffusion")
def sample(
    *,
    prompt: list[str],
    run: str | None = None,
    adapter: list[str] | None = None,
    control: list[str] | None = None,
    condition: list[str] | None = None,
    compute: bool = False,
    until: Share | None = None,
    how: Way = "add",
    switch_every: Count | None = None,
    source: list[str] | None = None,
    source_guidance: Annotated[float, Range(least=1)] | None = None,
    base: str | None = None,
    out: str | None = None,
    count: Count = 4,
    seed: Seed = 0,
    scale: float = 1.0,
    negative: str = "",
    steps: Denoising = 30,
    guidance: float | None = None,
    height: Side | None = None,
    width: Side | None = None,
    frames: Count | None = None,
    at_once: Count = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    offload: Literal["none", "blocks"] = "none",
    allow_pickle: bool = False,
    partial: bool = False,
) -> Path:
    """Draw pictures with a run, or with several adapters on one base.

    Args:
        prompt: One prompt or several.
        run: A run folder.
        adapter: PATH:SCALE, repeated: run folders, LoRA files; of an embedding file PATH:TOKEN, or PATH alone.
        control: PATH:SCALE, repeated: run folders of controls, which add up.
        condition: A file for each control, of --run first: a picture, or boxes as .json.
        compute: The files are pictures, from which edges, depth … are computed first.
        until: Share of the denoising steps in which controls act; as the run says by default.
        how: How several adapters act: add, all at once; switch, by turns; composite, each by itself, and the mean of what they
            say; k_lora and k_lora_star, of a subject and a style each layer takes one, anew at each step; b_lora, the first one's
            content half and the second's style half.
        switch_every: Denoising steps between two turns of switch, 5 where not given.
        source: Pictures to be edited as each prompt says, by a run on pairs of source and target.
        source_guidance: Weight of the source, of UNets; by default 1.5, that of their pipelines.
        base: Another base than the run's; needed where the adapters are files alone.
        out: Folder for the pictures; by default RUN/drawn, else drawn.
        count: Pictures a prompt, with seeds seed, seed + 1, …
        seed: Of the first picture.
        scale: Weight of the run's adapter: 0 the base, 1 as trained, any number for a slider.
        negative: Negative prompt.
        steps: Denoising steps.
        guidance: Weight of the prompt; by default that of the base's pipeline.
        height: In pixels; the base's by default.
        width: In pixels.
        frames: Of films, on Wan, which are written as animated .webp too; as the run was trained by default.
        at_once: Pictures in one batch.
        dtype: Of the weights.
        offload: blocks: the denoiser's weights stay on disk and are read a block at a time, on a processor.
        allow_pickle: Read pickles (.pt, .bin), tensors and plain values only.
        partial: Go without those parts of a LoRA file that find no place.
    """
    adapters = ([(run, scale)] if run else []) + [split_scale(text) for text in (control or []) + (adapter or [])]
    if not adapters and base is None:
        raise PeftError("sample needs --run, --adapter or --base: see `sample --help`.")
    if how != "switch" and switch_every is not None:
        raise PeftError(
            "--switch_every is how long each adapter's turn is with --how switch: leave it out, or give both."
        )
    if source and how != "add":
        raise PeftError("--how is for drawing from words: leave --source out.")
    if source and condition:
        raise PeftError("pictures are drawn from a --source or under a --condition: leave one of them out.")
    if source_guidance is not None and not source:
        raise PeftError("--source_guidance weighs a --source, and there is none: leave it out, or give one.")
    folder = out_folder(out or (str(Path(run) / "drawn") if run else "drawn"), run)
    loaded = combine(adapters, base, dtype, allow_pickle, partial, offload)
    if control and len(loaded.controls) < len(control):
        raise PeftError(
            "--control takes runs of control methods (controlnet, t2i_adapter, …): give the others with --adapter."
        )
    if condition and not loaded.controls:
        raise PeftError("--condition is for runs of control methods, and there is none here.")
    given = read_conditions(condition or [], loaded.controls, compute) if loaded.controls else []
    for note in (*notes_on([*prompt, negative]), *_on_tokens(loaded.tokens, [*prompt, negative])):
        tell(f"note: {note}")
    frames = loaded.frames if frames is None else frames
    drawing = Drawing(steps, guidance, height, width, at_once, source_guidance, frames)
    if source:
        from diffusion_peft.editing.use import edited

        if source_guidance is not None and not loaded.base.family.usual_drop:
            raise PeftError(
                f"--source_guidance is for UNets, and {loaded.base.name} is {loaded.base.family.title}: leave it out."
            )
        rows = edited(loaded, source, prompt, count, seed, negative, drawing)
    else:
        rows = loaded.sample(prompt, count, seed, negative, drawing, given, until, way=how, every=switch_every or 5)
    files = {f"{r:02d}-{seed + n}.png": png_of(image) for r, row in enumerate(rows) for n, image in enumerate(row)}
    films = {f"{r:02d}-{seed + n}.webp": film_of(image) for r, row in enumerate(rows) for n, image in enumerate(row)}
    kept = {name: film for name, film in films.items() if film is not None}
    write_files(folder, files | kept | {"grid.png": png_of(grid(rows))})
    row = "a row a prompt" if len(source or ()) < 2 else "a row a source and prompt"
    print(f"{len(files)} pictures in {folder}; all of them in {folder / 'grid.png'}, {row}")
    return folder


def _on_tokens(tokens: Iterable[str], texts: Sequence[str]) -> list[str]:
    """What is to be said of new tokens that no text names, or names without their brackets."""
    silent = [token for token in tokens if not any(has_token(text, token) for text in texts)]
    bare = [token for token in silent if any(has_token(text, token.strip("<>")) for text in texts)]
    notes = [
        f"the prompt says {token.strip('<>')}, which is words like any others: the token is {token}" for token in bare
    ]
    if rest := [token for token in silent if token not in bare]:
        notes.append(f"no prompt has {', '.join(rest)} in it, nor has --negative, which these adapters taught")
    return notes
