"""Prompts: tokens in any case, what of other programs' prompt language is said, and what is too much for a base."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion_peft.base.bases import load_base
from diffusion_peft.base.prompt_syntax import foreign_syntax, notes_on
from diffusion_peft.base.texts import add_token, expand, ids_of
from diffusion_peft.commands.main import main
from diffusion_peft.drawing.draw import Drawing, check_clip_skip
from diffusion_peft.use.run import Run, combine
from peft_core.errors import PeftError


@pytest.mark.parametrize("token", ["<EasyNegative>", "<easynegative>"])
def test_a_token_of_several_vectors_in_any_case(sd15: str, token: str) -> None:
    base = load_base(sd15)
    (first,) = add_token(base, token, 3)
    for text in ("a <EasyNegative> b", "a <easynegative> b", "a <EASYNEGATIVE> b"):
        ids = ids_of(base, [text])[0][0].tolist()
        assert [i for i in ids if first <= i < first + 3] == [first, first + 1, first + 2], text
    assert expand(base.tokenizers[0], f"a {token}_1 b") == f"a {token}_1 b"


def test_a_placeholder_that_is_a_word_in_another_case(sd15: str) -> None:
    base = load_base(sd15)
    for token in ("A", "a"):
        with pytest.raises(PeftError, match="is a word of the vocabulary already"):
            add_token(base, token, 1)
    add_token(base, "<toy>", 1)
    with pytest.raises(PeftError, match="is a word of the vocabulary already"):
        add_token(base, "<Toy>", 1)


FOREIGN = {
    "a (red:1.3) cup": ["(red:1.3)"],
    "a [red] cup, [a:b:0.5]": ["[a:b:0.5]", "[red]"],
    "a ((red)) cup": ["((red))"],
    "<lora:style:0.8> a cup BREAK a dog": ["<lora:style:0.8>", "BREAK"],
    "a cup AND a dog": ["AND"],
    "a cup (red) at 3:15, <toy>": [],
    "a break and a lorry": [],
}


@pytest.mark.parametrize("text, pieces", FOREIGN.items())
def test_pieces_of_another_prompt_language(text: str, pieces: list[str]) -> None:
    assert foreign_syntax(text) == pieces


def test_what_is_said_of_them() -> None:
    networks, others = notes_on(["<lora:style:0.8> a (red:1.3) cup", "[x] ((y)) AND z"])
    assert "loads nothing here" in networks and "--adapter style.safetensors:1" in networks
    assert "(red:1.3)" in others and "and 1 more" in others
    assert notes_on(["a red cup"]) == []


def test_sample_says_what_its_prompts_do(sd15: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file({"emb_params": torch.randn(2, 24)}, tmp_path / "easynegative.safetensors")
    line = ["sample", "--base", sd15, "--adapter", str(tmp_path / "easynegative.safetensors"), "--count", "1", "--steps",
            "1", "--out", str(tmp_path / "drawn"), "--prompt"]  # fmt: skip
    for prompt, negative, words in (
        ("a cup", "<EasyNegative>", []),
        ("a cup", "", ["no prompt has <easynegative> in it, nor has --negative"]),
        ("a cup", "easynegative", ["easynegative, which is words like any others: the token is <easynegative>"]),
        ("a (red:1.2) cup", "<easynegative>", ["(red:1.2): weights, brackets and keywords"]),
    ):
        assert main([*line, prompt, "--negative", negative]) == 0
        said = [each for each in capsys.readouterr().err.splitlines() if each.startswith("note: ")]
        assert len(said) == len(words) and all(word in each for word, each in zip(words, said, strict=True)), said


@pytest.mark.parametrize(
    "how, words",
    [
        (Drawing(steps=1001), "is drawn in 1 to 1000 steps, not 1001"),
        (Drawing(steps=0), "1 to 1000 steps, not 0"),
        (Drawing(at_once=0), "1 or more at once, not 0"),
        (Drawing(height=9), "multiples of 2: try --height 8"),
        (Drawing(width=-8), "multiples of 2: try --width 2"),
    ],
)
def test_what_a_base_cannot_draw(sd15: str, how: Drawing, words: str) -> None:
    with pytest.raises(PeftError, match=words):
        Run(load_base(sd15)).sample("a", 1, how=how)


def test_a_negative_prompt_of_too_many_tokens_is_refused(sd15: str) -> None:
    with pytest.raises(PeftError, match="the negative prompt has 202 tokens"):
        Run(load_base(sd15)).sample("a", 1, negative="a " * 200)


def test_clip_skip_leaves_a_layer(sd15: str, sdxl: str) -> None:
    for base, most in ((sd15, 1), (sdxl, 0)):  # encoders of two layers, of which SDXL's give the first one's output
        check_clip_skip(load_base(base), most)
        with pytest.raises(PeftError, match=f"--clip_skip {most + 1} leaves nothing .* {most} at the most"):
            check_clip_skip(load_base(base), most + 1)


def test_a_run_of_another_program_is_named(tmp_path: Path, sd15: str) -> None:
    (tmp_path / "run").mkdir()
    for command, words in (
        ("vision_peft fit", "use it with vision_peft"),
        ("diffusion_peft sweep", "name one of its runs"),
    ):
        (tmp_path / "run" / "config.yaml").write_text(f"command: {command}\nmethod: {{name: lora}}\n", encoding="utf-8")
        with pytest.raises(PeftError, match=words):
            combine([(str(tmp_path / "run"), 1.0)], sd15)
