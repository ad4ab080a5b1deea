"""What holds in every test: shapes that functions declare are checked."""

from tests.shapes import install

DECLARING = (
    "peft_core.kernels.lowrank_linear",
    "peft_core.kernels.twice",
    "peft_core.parts.bottleneck",
    "peft_core.parts.decomposed",
    "peft_core.parts.lowrank",
    "peft_core.parts.scale_shift",
    "peft_core.grafts.branch",
    "peft_core.grafts.tokens",
    "peft_core.grafts.weight_changes",
    "peft_core.prefix",
)
WATCHED = install(DECLARING)
