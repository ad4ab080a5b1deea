import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.grafts.tokens import Tokens
from peft_core.method import Method, Plan
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class PTuning(Method):
    """P-tuning: prompts at the input that an encoder makes of learnt embeddings while they train, P = encoder(E).

    Liu et al., "GPT Understands, Too", 2021. E (tokens, D) ~ N(0, 1). `mlp`: three linears with ReLU between, D -> m -> m -> D;
    `lstm`: an LSTM of two layers both ways, its states of both directions through 2m -> 2m -> D with ReLU between. As torch makes
    them, without dropout, m = D where None: Hugging Face PEFT (0.21), whose default is `mlp`. When training has ended P stands
    alone, and the encoder is None. They stand behind the class token, from the first block to the last. Not identical at step
    0: tokens take part in attention. 7,680 parameters on ViT-B/16 at last, 1,779,456 while training.

    Args:
        tokens: how many.
        encoder: what makes them; None: plain prompts.
        hidden: m.
    """

    tokens: Count = 10
    encoder: Literal["mlp", "lstm"] | None = "mlp"
    hidden: Count | None = None
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)
    not_mergeable: ClassVar[str | None] = "prompt tokens are part of the sequence, not of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_779_456), ({"encoder": None}, 7_680))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(tokens=2, hidden=5), cls(tokens=2, hidden=3, encoder="lstm", tower="image")

    def install(self, plan: Plan) -> None:
        for tower, run in plan.runs():
            stream, options = plan.token_stream(tower), plan.options_at(run[0])
            table = nn.Parameter(torch.randn(self.tokens, stream.width, **options))
            made = table if self.encoder is None else Encoder(table, self.encoder, self.hidden, options)
            plan.add_tokens(run, made, stream, count=self.tokens)

    def finish(self, model: nn.Module) -> None:
        """Keeps the prompts in place of what they are made by."""
        for graft in lifecycle.own_grafts(model, self, Tokens):
            if isinstance(graft.tokens, Encoder):
                made = nn.Parameter(graft.tokens(None).detach().clone())
                del graft.tokens
                graft.tokens = made
        lifecycle.adaptation_of(model, self).method = dataclasses.replace(self, encoder=None)


class Encoder(nn.Module):
    """P = encoder(E), P D."""

    def __init__(self, table: nn.Parameter, kind: str, hidden: int | None, options: dict[str, Any]) -> None:
        super().__init__()
        dim, self.table, self.lstm = table.shape[1], table, None
        m = dim if hidden is None else hidden
        if kind == "lstm":
            self.lstm = nn.LSTM(dim, m, num_layers=2, bidirectional=True, batch_first=True, **options)
            layers = [nn.Linear(2 * m, 2 * m, **options), nn.ReLU(), nn.Linear(2 * m, dim, **options)]
        else:
            layers = [nn.Linear(dim, m, **options), nn.ReLU(), nn.Linear(m, m, **options), nn.ReLU(),
                      nn.Linear(m, dim, **options)]  # fmt: skip
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor | None) -> Tensor:
        table = self.table if self.lstm is None else self.lstm(self.table[None])[0][0]
        return self.mlp(table)
