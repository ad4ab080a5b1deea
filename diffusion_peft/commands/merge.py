"""`diffusion_peft merge`: adapters written into the base's weights, or made one LoRA file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from diffusion_peft.use.adapters import config_of, keep_off, split_scale
from diffusion_peft.use.merged import merged_pipeline, new_folder, save_pipeline
from diffusion_peft.use.run import Run, combine
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.values import Count, NotNegative, Positive, Range, Seed


@command("diffusion")
def merge_(*, out: str | None = None, into: str | None = None, run: str | None = None, adapter: list[str] | None = None,
           scale: float = 1.0, base: str | None = None,
           how: Literal["cat", "svd", "ties", "dare", "dare_ties", "magnitude", "zip", "b_lora", "k_lora"] = "cat",
           rank: Count | None = None, density: Annotated[float, Range(above=0, most=1)] | None = None,
           data: list[str] | None = None, prompt: list[str] | None = None, steps: Count | None = None,
           lr: Positive | None = None, overlap: NotNegative | None = None, seed: Seed = 0,
           format: Literal["diffusers_lora", "kohya"] = "diffusers_lora",
           dtype: Literal["float32", "float16", "bfloat16"] = "float32", allow_pickle: bool = False,
           partial: bool = False) -> Path:  # fmt: skip
    """Write adapters into the base's weights, a whole pipeline folder that plain diffusers loads; or make them one LoRA file.

    Args:
        out: The pipeline folder to write.
        into: The LoRA file to write, in its place.
        run: A run folder.
        adapter: PATH:SCALE, repeated, in place of a run or besides.
        scale: Weight of the run's adapter.
        base: Another base than the run's.
        how: Of --into: cat, exactly, the ranks side by side; svd, the nearest of --rank; ties, dare, dare_ties, magnitude: of
            changes that are trimmed, or dropped at random, first; zip: a subject and a style, by coefficients that are learnt on
            both's pictures; b_lora: the first one's content half and the second's style half (SDXL).
        rank: Of the layers of --into; by default the largest of the adapters'. zip keeps both ranks side by side without one.
        density: The share of entries that ties, dare and magnitude keep, 0.5 where not given.
        data: Of zip: the pictures of each adapter, in their order; by default those that its run was trained on.
        prompt: Of zip: what they are called; by default as its run called them.
        steps: Of zip, 100 where not given.
        lr: Of zip's coefficients, 0.01 where not given.
        overlap: Of zip: the weight of what both adapters would say through the same inputs, 0.01 where not given.
        seed: Of what dare drops, and of zip's noise.
        format: Of --into.
        dtype: Of the weights that are written.
        allow_pickle: Read pickles (.pt, .bin), tensors and plain values only.
        partial: Go without those parts of a LoRA file that find no place.
    """
    adapters = ([(run, scale)] if run else []) + [split_scale(text) for text in adapter or []]
    if not adapters:
        raise PeftError("merge needs --run or --adapter.")
    if out is not None and into is not None:
        raise PeftError(
            "--out is a whole pipeline, --into one LoRA file: give merge one of them, and run it twice for both."
        )
    if out is None and into is None:
        raise PeftError("merge needs --out, a folder for the whole pipeline, or --into, one LoRA file.")
    given = {
        "rank": rank,
        "density": density,
        "data": data,
        "prompt": prompt,
        "steps": steps,
        "lr": lr,
        "overlap": overlap,
    }
    _check_used([name for name, value in given.items() if value is not None], how, into is None)
    if into is None:
        target = new_folder(str(out))
        keep_off(target, [path for path, _ in adapters])
        loaded = combine(adapters, base, allow_pickle=allow_pickle, partial=partial)
        return save_pipeline(merged_pipeline(loaded), target, dtype)
    from diffusion_peft.use.joined import join_into

    keep_off(Path(into), [path for path, _ in adapters])
    settings = _of_zip(adapters, data, prompt) if how == "zip" else []
    if how in ("zip", "b_lora") and len(adapters) != 2:
        raise PeftError(f"--how {how} takes two adapters, of a subject and of a style, not {len(adapters)}.")
    loaded = combine([(path, 1.0) for path, _ in adapters], base, allow_pickle=allow_pickle, partial=partial)
    if how == "b_lora":
        make: Any = _halves(loaded)
    elif how == "zip":
        from diffusion_peft.personalize.zip_lora import Zipping

        own: dict[str, Any] = {name: given[name] for name in ("steps", "lr") if given[name] is not None}
        weight: dict[str, Any] = {} if overlap is None else {"weight": overlap}
        make = _zip(loaded, settings, Zipping(**own, **weight, seed=seed), rank)
    else:
        from diffusion_peft.files.joining import joined

        def plain(part: str, sets: list, weights: list) -> dict:
            return joined(sets, weights, how, rank, 0.5 if density is None else density, seed)  # type: ignore[arg-type]

        make = plain

    file = join_into(loaded, [weight for _, weight in adapters], into, format, dtype, make)
    print(f"{file}: {len(adapters)} adapter{'s' * (len(adapters) > 1)} in one LoRA file")
    return file


def _check_used(given: Sequence[str], how: str, whole: bool) -> None:
    """Raises PeftError: options, by name, that this way of merging would make no use of."""
    if how == "k_lora":
        raise PeftError(
            "K-LoRA chooses between a subject and a style anew at each denoising step, which no file can hold: draw with "
            "`sample --how k_lora`."
        )
    if whole and (how != "cat" or given):
        flag = given[0] if how == "cat" else "how"
        raise PeftError(f"--{flag} is of --into, one LoRA file, and --out adds all adapters up: leave --{flag} out.")
    trims, zips = ("ties", "dare", "dare_ties", "magnitude"), ("data", "prompt", "steps", "lr", "overlap")
    if how != "zip" and {*given} & {*zips}:
        said = ", ".join(f"--{name}" for name in zips)
        raise PeftError(f"{said} are what --how zip learns its coefficients on, and how: leave them out.")
    if "density" in given and how not in trims:
        raise PeftError(f"--density is of --how {', '.join(trims)}: leave it out.")
    if "rank" in given and how == "b_lora":
        raise PeftError("--how b_lora keeps the ranks of both halves: leave --rank out.")


def _of_zip(
    adapters: Sequence[tuple[str, Any]], data: list[str] | None, prompt: list[str] | None
) -> list[dict[str, Any]]:
    """`fit`'s settings for each adapter's pictures and words.

    Raises:
        PeftError: a file's pictures are not given, another number of them than of adapters.
    """
    from diffusion_peft.commands.fit import fit

    for flag, given in (("data", data), ("prompt", prompt)):
        if given is not None and len(given) != len(adapters):
            raise PeftError(f"--{flag} is one for each adapter, {len(adapters)}, not {len(given)}.")
    found = []
    for number, (path, _) in enumerate(adapters):
        folder = Path(path).expanduser()
        config = config_of(folder) if folder.is_dir() else None
        if config is None and data is None:
            raise PeftError(
                f"--how zip learns on the pictures that {path} was trained on, which a file does not name: give --data, a folder "
                "for each adapter."
            )
        settings = fit.defaults({}) | (config or {})
        settings |= {"data": data[number]} if data else {}
        found.append(settings | ({"prompt": prompt[number]} if prompt else {}))
    return found


def _zip(loaded: Run, settings: list[dict[str, Any]], how: Any, rank: int | None) -> Any:
    from diffusion_peft.files.joining import joined
    from diffusion_peft.personalize.zip_lora import zipped
    from diffusion_peft.use.joined import own_names, weighed

    denoiser = loaded.base.denoiser
    for part, model in loaded.models.items():
        if part != denoiser and any(own_names(model, name) for name in loaded.names):
            raise PeftError(f"--how zip merges changes of the {denoiser}, and one of these changes the {part} too.")

    def make(part: str, sets: list, weights: list[float]) -> dict:
        own = [weighed(layers, weight) for layers, weight in zip(sets, weights, strict=True)]
        found = zipped(loaded.base, own, settings, how)
        return found if rank is None else joined([found], [1.0], "svd", rank, 1.0, 0)

    return make


def _halves(loaded: Run) -> Any:
    from diffusion_peft.files.halves import HALVES, check_halves, half_of
    from diffusion_peft.use.joined import weighed

    check_halves(loaded.base.kind, loaded.base.name)

    def make(part: str, sets: list, weights: list[float]) -> dict:
        found: dict = {}
        for half, layers, weight, name in zip(HALVES, sets, weights, loaded.names, strict=True):
            if part == loaded.base.denoiser:
                found |= weighed(half_of(layers, half, name.partition("_")[2]), weight)
        return found

    return make
