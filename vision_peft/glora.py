"""`vision_peft glora`: which form each layer of a finished GLoRA search takes, by evolution on val."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from random import Random
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.video.batches import batches_of

from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.runs.process import tell
from peft_core.methods.reparameterized.glora import ALLOWED, Drawn, Generalized, GLoRA
from peft_core.values import Count, Seed, Share, Whole

Words = tuple[str, ...]
"""One word of five letters a layer."""


class Layers:
    """What evolution (`noah.search.evolve`) asks of a space: words for these layers, and how many parameters they take."""

    def __init__(self, changes: Sequence[Drawn]) -> None:
        self.changes, self.space, self.blocks = changes, self, len(changes)

    def count(self, words: Words) -> int:
        return sum(change.size(word) for change, word in zip(self.changes, words, strict=True))

    def draw(self, chance: Random, blocks: int) -> Words:
        return tuple("".join(chance.choice(letters) for letters in ALLOWED) for _ in range(blocks))

    def mutate(self, words: Words, chance: Random, rate: float, _: float) -> Words:
        """Each letter of each word is drawn anew with this probability."""
        return tuple(
            "".join(
                chance.choice(known) if chance.random() < rate else letter
                for letter, known in zip(word, ALLOWED, strict=True)
            )
            for word in words
        )

    def cross(self, one: Words, other: Words, chance: Random) -> Words:
        """Each letter of each word from either parent."""
        return tuple("".join(map(chance.choice, zip(a, b, strict=True))) for a, b in zip(one, other, strict=True))

    def shrink(self, words: Words, chance: Random) -> Words:
        """One letter goes to its next smaller form."""
        at = [(n, i) for n, word in enumerate(words) for i, letter in enumerate(word) if letter != ALLOWED[i][-1]]
        number, place = chance.choice(at)
        word, known = words[number], ALLOWED[place]
        smaller = known[known.index(word[place]) + 1]
        return (*words[:number], word[:place] + smaller + word[place + 1 :], *words[number + 1 :])


@command("vision")
def glora(
    *, run: str, out: str, budget: Count | None = None, population: Count = 50, generations: Count = 20, parents: Count = 10,
    mutations: Whole = 25, crossovers: Whole = 25, mutation_rate: Share = 0.2, seed: Seed = 0,
) -> dict[str, Any]:  # fmt: skip
    """Choose each layer's form of a finished run of glora with search, by evolution on val; the weights stay as trained.

    As in Arnav0400/ViT-Slim (GLoRA/evolution.py, which scores on test). The new run folder is used like any other.

    Args:
        run: The run folder, of --method glora --method.search true.
        out: The new run folder.
        budget: The most parameters to insert; 1,000,000 there, any number by default.
        population: Candidates in each generation.
        generations: Of them the first is all random.
        parents: The best so far, from which the next generation comes.
        mutations: Candidates of a generation that are mutated parents.
        crossovers: Candidates of a generation that mix two parents; random ones fill up.
        mutation_rate: Of each letter.
        seed: Of the search.
    """
    from peft_core import adapt, remove
    from peft_core.attach import pick
    from peft_core.lifecycle import own_grafts
    from vision_peft.derived import free_folder, save_as, write_about
    from vision_peft.noah.fitness import on_batches
    from vision_peft.noah.search import Evolution, Score, best, evolve
    from vision_peft.run import classifier

    folder = free_folder(out)
    loaded = classifier(run, "glora")
    (adaptation, *others) = pick(loaded.model, None)
    method = adaptation.method
    if others or not isinstance(method, GLoRA) or not method.search:
        raise PeftError(f"{run} was trained with {method.name}: fit --method glora --method.search true first.")
    chosen = Data.of(loaded.config)
    val = chosen.open().val
    if not len(val):
        raise PeftError("the run's data has no val split to choose on: give it one.")
    layers: Any = Layers(list(own_grafts(loaded.model, method, Drawn)))
    least, most = (layers.count(tuple([word] * layers.blocks)) for word in ("nnnnn", "lllvv"))
    if budget is not None and budget < least:
        raise PeftError(f"a budget of {budget:,} parameters is below the smallest form, {least:,}.")
    device = next(loaded.model.parameters()).device
    decoded = chosen.decode(val, loaded.fit.size, mode=loaded.fit.mode, crop_pct=loaded.fit.crop_pct)
    batches = [
        (normalise(batch.images.to(device), loaded.mean, loaded.std), batch.labels.to(device))
        for batch in batches_of(decoded, 64, shuffle=False)
    ]

    @torch.inference_mode()
    def score(words: Words) -> Score:
        for change, word in zip(layers.changes, words, strict=True):
            change.use(word)
        return on_batches(loaded.model, batches)

    loaded.model.eval()
    evolution, found = Evolution(population, generations, parents, mutations, crossovers, mutation_rate), []
    each: Any = lambda many: [score(words) for words in many]  # noqa: E731
    for new in evolve(layers, most if budget is None else budget, evolution, seed, each):
        found += new
        top = best(found)[0]
        tell(f"generation {new[0].generation + 1}/{generations}  best {100 * top.score.correct / len(val):.1f} % on val "
             f"with {top.parameters:,} parameters")  # fmt: skip
    top, changes = best(found)[0], list(layers.changes)
    words: Any = top.subnet
    result = replace(method, search=False, layers=words)
    remove(loaded.model)
    adapt(loaded.model, result, train_head=bool(loaded.card["train_head"]))
    for change, narrow in zip(changes, own_grafts(loaded.model, result, Generalized), strict=True):
        change.give(narrow)
    save_as(folder, loaded, loaded.model)
    results = {
        "candidates": len(found), "layers": list(words), "parameters": top.parameters, "pictures": len(val),
        "accuracy": top.score.correct / len(val), "evolution": asdict(evolution),
    }  # fmt: skip
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(result).items()}
    write_about(folder, loaded, {"name": result.name, **settings}, results, f"What evolution chose of {run}")
    print(f"{folder}: {top.parameters:,} parameters, {100 * results['accuracy']:.1f} % of {len(val)} pictures of val")
    return results
