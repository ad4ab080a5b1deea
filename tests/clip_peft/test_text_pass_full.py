"""Towers in which later tokens matter are run in full: bidirectional ones, CoCa's, transformers encoders."""

import copy

import pytest
import torch

from clip_peft.text.run import TextPass
from clip_peft.text.tower import TextTower
from peft_core import PeftError
from tests.clip_peft.models import LENGTH, agree, clip, close, coca, custom_clip, gradients, prompts_of, random, siglip


@pytest.mark.parametrize(
    "build", [siglip, coca, lambda: custom_clip(no_causal_mask=True)], ids=["last", "coca", "argmax"]
)
def test_full_length_where_later_tokens_matter(build):
    model = build().requires_grad_(False)
    tower = TextTower(model)
    assert tower.full_length_because() is not None
    prompts = prompts_of(model, template="a photo of a {}.")
    features = TextPass(model, prompts)()
    reference = model.encode_text(prompts.ids, normalize=False)
    close(features, reference)
    with torch.no_grad():  # what leaving the padding out would have given
        cut = model.encode_text(prompts.ids[:, : int((prompts.ids > 0).sum(1).max())], normalize=False)
    assert float((cut - reference).abs().max()) > 0.01 * float(reference.abs().max())


@pytest.mark.parametrize("build", [siglip, coca], ids=["siglip", "coca"])
@pytest.mark.parametrize("memory", [None, 3e5], ids=["at_once", "chunks"])
def test_context_and_deep_prompts_at_full_length(build, memory: float | None):
    model = build().requires_grad_(False)
    prompts = prompts_of(model, 3)
    vectors = [random(3, 32, seed=i) for i in range(3)]
    features = TextPass(model, prompts, memory)(vectors[0], vectors[1:])
    # in the embedding table's stead, for a table of one class's own
    other = copy.deepcopy(model)
    other.text.token_embedding = torch.nn.Embedding.from_pretrained(vectors[0].detach())
    taken = prompts.slots.clamp(min=0)
    words = model.text.token_embedding(prompts.ids)
    handle = other.text.token_embedding.register_forward_hook(
        lambda _, __, y: torch.where((prompts.slots >= 0)[..., None], y, words)
    )
    for block, vector in zip(other.text.transformer.resblocks[1:], vectors[1:], strict=True):

        def replace(_, args, vector=vector):
            x = args[0].clone()
            x[:, :LENGTH][prompts.slots >= 0] = vector[taken[prompts.slots >= 0]]
            return (x, *args[1:])

        block.register_forward_pre_hook(replace)
    if hasattr(other.text, "_build_additive_mask"):
        other.text._build_additive_mask = lambda text, n, d: model.text._build_additive_mask(prompts.ids, n, d)
    close(features, other.encode_text(taken, normalize=False))
    handle.remove()
    assert all(g.abs().sum() > 0 for g in gradients(features, vectors))


def test_tokens_that_join_on_their_way_in_chunks_too():
    model = clip()
    prompts = prompts_of(model)
    tokens = {1: random(2, 32, seed=4), 2: random(2, 32, seed=5)}
    whole = TextPass(model, prompts)(inserted=tokens, mix=0.7)
    agree(TextPass(model, prompts, memory=1.0)(inserted=tokens, mix=0.7), whole, list(tokens.values()))
    assert not torch.allclose(whole, TextPass(model, prompts)())
    with pytest.raises(
        PeftError, match="no tokens can join these texts on their way, because its text tower is bidirectional"
    ):
        TextPass(siglip(), prompts_of(siglip()))(inserted=tokens)
