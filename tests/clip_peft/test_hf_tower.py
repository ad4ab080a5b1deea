"""A transformers text encoder inside a CLIP model (open_clip's HFTextEncoder), built from a config alone."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clip_peft import OpenVocabulary
from clip_peft.text.run import TextPass
from clip_peft.text.tower import TextTower
from peft_core import PeftError
from tests.clip_peft.models import LENGTH, NAMES, VISION, agree, close, pictures, prompts_of, random, tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bert")
    bert(folder)
    text = dict(
        hf_model_name=str(folder), hf_model_pretrained=False, hf_pooler_type="mean_pooler", hf_proj_type="linear"
    )
    torch.manual_seed(0)
    return open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION, text_cfg=text).eval()


def bert(folder: Path) -> None:
    from transformers import BertConfig

    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertConfig(vocab_size=49408, max_position_embeddings=LENGTH, pad_token_id=0, **small).save_pretrained(folder)


def test_texts_are_the_model_s_own(model: Any) -> None:
    tower = TextTower(model)
    assert tower.is_hf and tower.full_length_because() == "a transformers text encoder reads all tokens"
    assert (tower.width, tower.features, tower.context_length, tower.vocabulary) == (32, 16, LENGTH, 49408)
    run = TextPass(model, prompts_of(model, template="a photo of a {}."))
    with torch.no_grad():
        close(run(), model.encode_text(tokenizer()([f"a photo of a {name}." for name in NAMES])))


@pytest.mark.parametrize("memory", [None, 3e5], ids=["at_once", "chunks"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_context_stands_where_the_tokens_would(model: Any, position: str, memory: float | None) -> None:
    prompts, context = prompts_of(model, 3, position), random(3, 32)
    text = model.text
    words = text.transformer.get_input_embeddings()(prompts.ids).detach().clone()
    rows, columns = (prompts.slots >= 0).nonzero(as_tuple=True)
    words = words.index_put((rows, columns), context[prompts.slots[rows, columns]])
    seen = (prompts.ids != 0).long()
    expected = text.proj(text.pooler(text.transformer(inputs_embeds=words, attention_mask=seen), seen))
    agree(TextPass(model, prompts, memory)(context), expected, [context])


def test_methods_on_it(model: Any) -> None:
    labels = torch.tensor([0, 3, 2, 6])
    for method, hyper in (("coop", {"context": 3}), ("kgcoop", {}), ("cocoop", {}), ("taskres", {})):
        whole = OpenVocabulary(model, method, NAMES, tokenizer(), **hyper).train()
        whole.loss(pictures(), labels).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in whole.trainable()), method
        assert whole.eval()(pictures()).shape == (4, len(NAMES))


def test_what_it_does_not_have(model: Any) -> None:
    with pytest.raises(PeftError, match="pass tokenizer=open_clip.get_tokenizer"):
        OpenVocabulary(model, "coop", NAMES)
    for method in ("maple", "promptsrc"):
        with pytest.raises(PeftError, match=f"{method} needs open_clip's own text blocks, not a transformers encoder"):
            OpenVocabulary(model, method, NAMES, tokenizer(), depth=2)
