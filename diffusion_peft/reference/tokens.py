"""A CLIP tokenizer of the captions' words: byte-pair encoding in which each of them is one token.

All 256 bytes are tokens too, so any prompt can be said, and a new word ("sks") is spelt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in CLIP's and GPT-2's vocabularies, the printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(rest))]


def merges_of(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first (ties: alphabetical), until each word is one token."""
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in spelt for pair in zip(word, word[1:], strict=False)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in spelt:
            k = 0
            while k < len(word) - 1:
                if (word[k], word[k + 1]) == best:
                    word[k : k + 2] = ["".join(best)]
                k += 1
    return merges


def write_tokenizer(words: Iterable[str], folder: Path) -> int:
    """Writes a `CLIPTokenizer` folder whose single tokens are `words`; gives the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = merges_of(words)
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "bos_token": START, "eos_token": END,
        "unk_token": END, "pad_token": END, "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
    }  # fmt: skip
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False), "tokenizer_config.json": json.dumps(config, indent=2),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]),
        "special_tokens_map.json": json.dumps({k: v for k, v in config.items() if k.endswith("_token")}, indent=2),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return len(vocabulary)
