"""Finished runs in use: a base with one adapter or several, ready to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.base.bases import KINDS, Base, load_base
from diffusion_peft.base.texts import check_length
from diffusion_peft.base.tokens import add_embedding, place_tokens
from diffusion_peft.drawing.draw import Chunk, Drawing, draw, embed, embed_negative
from diffusion_peft.drawing.scaling import set_scales
from diffusion_peft.files.custom_diffusion import is_concept, load_concept, read_concept
from diffusion_peft.files.embeddings import is_embedding
from diffusion_peft.formats import import_adapter
from peft_core import load_adapter
from peft_core.adapter_file import read_card, read_weights
from peft_core.attach import is_inserted, record_of
from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import read_run_config
from peft_core.jobs.runs.load import program_of
from peft_core.jobs.runs.process import tell

if TYPE_CHECKING:
    from diffusion_peft.control.use import Given, Use


@dataclass
class Run:
    """What `peft_core.load_run` gives for a diffusion run: a base, and the adapters that were put on it.

    Args:
        base: its parts are adapted in place.
        clip_skip: as the run was trained.
        tokens: new tokens and their numbers of vectors.
        names: the adapters by name, with their cards ({} for files of other tools).
        controls: those of them that draw under a condition.
    """

    base: Base
    clip_skip: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    names: dict[str, dict[str, Any]] = field(default_factory=dict)
    controls: list[Use] = field(default_factory=list)

    @property
    def unet(self) -> nn.Module:
        return self.base.part("unet")

    @property
    def models(self) -> dict[str, nn.Module]:
        """UNet and text encoders by part."""
        return {"unet": self.unet} | dict(zip(self.base.text_parts, self.base.text_encoders, strict=True))

    def set_scale(self, scale: float, name: str | None = None) -> None:
        """Weighs one adapter, or all: 0 is the base, 1 the adapter as trained; new tokens stay.

        Raises:
            PeftError: an adapter that keeps no originals, or that has new tokens alone.
        """
        found = set_scales(self.models.values(), scale, f"{name}__" if name else "")
        if not found and scale != 1.0:
            raise PeftError("an adapter of new tokens alone has no scale: leave the token out of the prompt instead.")

    def sample(
        self,
        prompts: str | Sequence[str],
        count: int = 1,
        seed: int = 0,
        negative: str = "",
        how: Drawing | None = None,
        conditions: Sequence[Given] = (),
        until: float | None = None,
    ) -> list[list[Image.Image]]:
        """`count` pictures of each prompt, with seeds seed, seed + 1, …

        Args:
            conditions: one for each of `controls`, a picture or boxes, for all pictures; without any, they are off.
            until: share of the denoising steps in which controls act; each run's own where None.

        Raises:
            PeftError: a prompt of too many tokens, another number of conditions than of controls.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        asked = [(text, seed + n) for text in texts for n in range(count)]
        given = [[each] * len(asked) for each in conditions]
        pictures = self.draw_each(asked, how or Drawing(), given, negative, until)
        return [pictures[start : start + count] for start in range(0, len(pictures), count)]

    def draw_each(
        self,
        asked: Sequence[tuple[str, int]],
        how: Drawing,
        conditions: Sequence[Sequence[Given]] = (),
        negative: str = "",
        until: float | None = None,
        done: Callable[[int, Image.Image], object] = lambda number, image: None,
    ) -> list[Image.Image]:
        """A picture for each (prompt, seed); `conditions` are, for each control, one a picture.

        Raises:
            PeftError: a prompt of too many tokens, another number of conditions than of controls.
        """
        for text in dict.fromkeys(text for text, _ in asked):
            check_length(self.base, text, "the prompt")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for model in self.models.values():
            model.to(device)
        known = {text: embed(self.base, text, self.clip_skip) for text in dict.fromkeys(text for text, _ in asked)}
        against = embed_negative(self.base, negative, self.clip_skip)
        wanted = [(known[text], seed) for text, seed in asked]
        return draw(self.base, self.unet, wanted, against, how, done=done, before=self.before(conditions, how, until))

    def before(
        self, conditions: Sequence[Sequence[Given]], how: Drawing, until: float | None = None
    ) -> Callable[[Chunk], object]:
        """What `draw` calls before each batch; `conditions` are, for each control, one a picture."""
        if not conditions:
            return lambda chunk: None
        if len(conditions) != len(self.controls):
            raise PeftError(f"there are {len(conditions)} conditions and {len(self.controls)} controls.")
        from diffusion_peft.control.use import giving

        side = self.base.resolution
        return giving(self.base, self.controls, conditions, (how.height or side, how.width or side), how.steps, until)

    def vectors(self) -> dict[str, list[Tensor]]:
        """Each new token's vectors n D, one tensor a text encoder."""
        found: dict[str, list[Tensor]] = {}
        for part, encoder in zip(self.base.text_parts, self.base.text_encoders, strict=True):
            tokenizer = self.base.part(part.replace("text_encoder", "tokenizer"))
            table = encoder.get_input_embeddings().weight.detach()
            for token, count in self.tokens.items():
                first = tokenizer.convert_tokens_to_ids(token)
                found.setdefault(token, []).append(table[first : first + count].float().cpu().clone())
        return found


def open_run(path: Path) -> Run:
    """Loads a run folder (`peft_core.load_run`).

    Raises:
        PeftError: no run folder, or one without an adapter yet.
    """
    return combine([(str(path), 1.0)])


def combine(
    adapters: Sequence[tuple[str, float]], base: str | None = None, dtype: str = "float32", allow_pickle: bool = False
) -> Run:
    """Several adapters on one base, each with its scale: run folders, LoRA files, embedding files.

    Args:
        adapters: (path, scale).
        base: by default that of the first run.
        allow_pickle: read `.pt` and `.bin` files with torch's weights-only loader.

    Raises:
        PeftError: no base, an adapter of another base, adapters that both overwrite stock weights.
    """
    folders = [Path(path).expanduser() for path, _ in adapters]
    configs = [read_run_config(folder) if folder.is_dir() and _is_run(folder) else None for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if config is not None:
            program_of(folder, ("diffusion_peft",))
    named = base or next((config["base"] for config in configs if config), None)
    if named is None:
        raise PeftError("which base? Name it with --base, as none of these adapters is a run folder.")
    run = Run(load_base(named, dtype))
    names = _names(folders)
    for folder, config, name, (_, scale) in zip(folders, configs, names, adapters, strict=True):
        if config is not None:
            run.clip_skip = config["clip_skip"]
            _add_run(run, folder, name)
            if config.get("control") is not None:
                from diffusion_peft.control.use import uses_of

                run.controls += uses_of(run.base, config, f"{name}__")
        elif is_concept(folder):
            load_concept(run.unet, read_concept(folder, allow_pickle))
            run.names[name] = {}
            if scale != 1.0:
                raise PeftError(f"{folder} overwrites weights and has no scale: give it without :{scale:g}.")
        elif is_embedding(folder):
            add_embedding(run, folder, allow_pickle)
            continue
        else:
            imported = import_adapter(
                run.unet, run.base.text_encoders, folder, name=f"{name}__file", allow_pickle=allow_pickle
            )
            tell(f"{folder}: {imported}")
            run.names[name] = {}
        if scale != 1.0:
            run.set_scale(scale, name)
    return run


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _names(folders: Sequence[Path]) -> list[str]:
    """A short name for each adapter, all different, that can stand in a module's name."""
    names: list[str] = []
    for number, folder in enumerate(folders):
        stem = "".join(c if c.isalnum() else "_" for c in folder.absolute().stem)
        names.append(f"a{number}_{stem}")
    return names


def _add_run(run: Run, folder: Path, name: str) -> None:
    parts = sorted(path.name for path in (folder / "adapter").glob("*") if (path / "adapter.json").is_file())
    if not parts:
        raise PeftError(f"{folder} has no adapter yet: give its `fit` command again, which goes on where it stopped.")
    for part in parts:
        card = read_card(folder / "adapter" / part)
        if card.get("kind") != run.base.kind:
            raise PeftError(
                f"{folder} was trained on {KINDS.get(card.get('kind', ''), 'another model')} ({card.get('base')}), but "
                f"{run.base.name} is {KINDS[run.base.kind]}: give --base that one."
            )
        model = run.base.part(part)
        taken = list(record_of(model).adaptations.values()) if "_peft_record" in model.__dict__ else []
        overwrites = not all(map(is_inserted, read_weights(folder / "adapter" / part)))
        if overwrites and any(adaptation.trained for adaptation in taken):
            raise PeftError(
                f"{folder} and another of these adapters both overwrite weights of the {part}, so they cannot stand side by "
                "side: `diffusion_peft join` joins Custom Diffusion runs."
            )
        load_adapter(model, folder / "adapter" / part, prefix=f"{name}__")
        if card.get("tokens") and part in run.base.text_parts:
            place_tokens(run, part, card["tokens"], f"{name}__tokens")
        model.requires_grad_(False).eval()
    run.names[name] = card


def split_scale(text: str) -> tuple[str, float]:
    """PATH:SCALE, or PATH alone at 1.

    Raises:
        PeftError: nothing at PATH.
    """
    path, colon, number = text.rpartition(":")
    try:
        found = (path, float(number)) if colon else (text, 1.0)
    except ValueError:
        found = (text, 1.0)
    if not Path(found[0]).expanduser().exists():
        raise PeftError(
            f"there is no adapter {found[0]}: give a run folder or a file, with :SCALE after it if you like."
        )
    return found
