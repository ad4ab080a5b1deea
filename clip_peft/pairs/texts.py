"""Captions as token ids, once, and their pass through the text tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_peft.frozen import Clip
from clip_peft.text.prompts import Prompts, specials, token_rows

CHUNK = 4096


class Captions:
    """Different captions of a data set as ids, int32 M L, and how many were longer than the model reads.

    Those lose what stands before the tokens that end a text, as in CLIP's own tokenizer.
    """

    def __init__(self, clip: Clip, texts: Sequence[str]):
        self.clip, self.texts = clip, list(texts)
        tokenizer = clip.tokenizer
        own = getattr(tokenizer, "context_length", None) or clip.tower.context_length
        self.length = min(clip.tower.context_length, own)
        parts = [self._ids(self.texts[start : start + CHUNK]) for start in range(0, len(self.texts), CHUNK)]
        self.ids = torch.cat(parts) if parts else torch.zeros(0, self.length, dtype=torch.int32)
        full = (self.ids[:, -1] != token_rows(tokenizer, [])[1]).nonzero()[:, 0].tolist()
        rows, _ = token_rows(tokenizer, [self.texts[row] for row in full])
        back = specials(tokenizer)[1]
        self.cut = 0
        for at, row in zip(full, rows, strict=True):
            if len(row) > self.length:
                kept = [*row[: self.length - back], *row[len(row) - back :]]
                self.ids[at] = torch.tensor(kept, dtype=torch.int32)
                self.cut += 1

    def _ids(self, texts: list[str]) -> Tensor:
        return self.clip.tokenizer(texts, context_length=self.length).to(torch.int32)  # type: ignore[call-arg]

    def __len__(self) -> int:
        return len(self.texts)

    def notes(self) -> list[str]:
        if not self.cut:
            return []
        are = "caption is" if self.cut == 1 else "captions are"
        longer = f"longer than the {self.length} tokens that the model reads"
        return [f"{self.cut:,} of {len(self):,} {are} {longer}: their ends are left out"]

    def prompts(self, rows: Tensor) -> Prompts:
        """The captions `rows` as the text pass takes them."""
        ids = self.ids[rows].long()
        names = tuple(self.texts[row] for row in rows.tolist())
        return Prompts(names, ids, torch.full_like(ids, -1), self.clip.tower.pooled(ids), 0)

    def features(self, rows: Tensor) -> Tensor:
        """B E, not normalised, of the captions `rows`; without graph where nothing of the tower trains."""
        trains = torch.is_grad_enabled() and bool(self.clip.tower.trainable())
        text_pass = self.clip.text_pass(self.prompts(rows))
        text_pass.memory = 2.0**60  # how many there are at once is decided here
        with torch.set_grad_enabled(trains):
            return text_pass()
