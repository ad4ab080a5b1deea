"""`diffusion_peft join`: Custom Diffusion runs that were trained apart, in one pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.base.texts import encode, ids_of
from diffusion_peft.files.embeddings import write_embedding
from diffusion_peft.personalize.concepts import join
from diffusion_peft.use.merged import merged_pipeline, save_pipeline
from diffusion_peft.use.run import Run, combine
from peft_core.attach import record_of
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command

NOUNS = tuple(
    "person man woman child dog cat horse bird fish tree flower house car train boat street city mountain river beach "
    "forest sky field room table chair bed window door lamp book clock cup plate bowl bottle cake bread fruit apple shoe "
    "hat shirt bag phone computer camera guitar ball toy statue bridge tower garden kitchen shop circle square star".split()
)
SENTENCES = ("a photo of a {}", "a painting of a {}", "two people beside a red {}", "a small {} on a blue background",
             "the {} in the street at night", "a close-up of an old {}", "{}")  # fmt: skip


@command("diffusion")
def join_(*, run: list[str], out: str) -> Path:
    """Join Custom Diffusion runs in closed form: a whole pipeline folder that knows all their tokens.

    Args:
        run: Run folders, trained with custom_diffusion on the same base, each with tokens of its own.
        out: The folder to write.
    """
    if len(run) < 2:
        raise PeftError("join needs two runs or more: --run A B.")
    single = [combine([(path, 1.0)]) for path in run]
    trained: list[dict[str, Tensor]] = []
    for path, loaded in zip(run, single, strict=True):
        adaptation = next(iter(record_of(loaded.unet).adaptations.values())) if _is_adapted(loaded) else None
        if adaptation is None or not adaptation.trained or not loaded.tokens:
            raise PeftError(f"{path} is no Custom Diffusion run with new tokens: join takes those alone.")
        parameters = dict(loaded.unet.named_parameters())
        trained.append({key: parameters[key].detach().clone() for key in adaptation.trained})
    whole = together(single)
    stock = dict(whole.unet.named_parameters())
    words = [
        features(whole, [f"a photo of {token}" for token in loaded.tokens], after=loaded.tokens) for loaded in single
    ]
    plain = features(whole, [sentence.format(noun) for noun in NOUNS for sentence in SENTENCES])
    with torch.no_grad():
        for key in sorted(set().union(*trained)):
            concepts = [(own[key], text) for own, text in zip(trained, words, strict=True) if key in own]
            if concepts[0][0].shape[1] != plain.shape[1]:
                raise PeftError(f"{key} does not read the text: join takes keys and values (targets cross_k cross_v).")
            stock[key].copy_(join(stock[key], concepts, plain))
    return save_pipeline(merged_pipeline(whole), Path(out).expanduser())


def _is_adapted(run: Run) -> bool:
    return "_peft_record" in run.unet.__dict__


def together(runs: list[Run]) -> Run:
    """The runs' base with all their tokens.

    Raises:
        PeftError: two runs have the same token.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files: list[Any] = []
        for number, run in enumerate(runs):
            for place, (token, vectors) in enumerate(run.vectors().items()):
                file = write_embedding(Path(folder) / f"{number}-{place}.safetensors", token, vectors)
                files.append((str(file), 1.0))
        return combine(files, runs[0].base.name)


@torch.no_grad()
def features(run: Run, texts: list[str], after: Any = ()) -> Tensor:
    """Text features N D of all tokens up to each text's end, or from the first new token on."""
    ids = ids_of(run.base, texts)
    hidden, _ = encode(run.base.text_encoders, ids, run.clip_skip)
    tokenizer = run.base.tokenizers[0]
    new = {tokenizer.convert_tokens_to_ids(token) for token in after}
    rows = []
    for row, own in zip(hidden, ids[0].tolist(), strict=True):
        end = own.index(tokenizer.eos_token_id) + 1
        start = next((place for place, token in enumerate(own) if token in new), 0)
        rows.append(row[start:end])
    return torch.cat(rows)
