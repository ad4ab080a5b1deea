"""The weight change of LoHa: the elementwise product of two low-rank ones."""

from torch import Tensor, nn

from peft_core.grafts.formed import Formed
from peft_core.parts.factors import add_scaled, is_spatial, new_parameter, rows_of, tucker


class Hadamard(Formed):
    """W' = W + s·(w1_a w1_b) ⊙ (w2_a w2_b); w_a (out, r), w_b (r, in·kh·kw). With Tucker cores t1, t2 (r, r, kh, kw):
    w_a (r, out), w_b (r, in). w2_a is zero: W' = W at step 0."""

    commutes = True
    needs_matrix = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, cores: bool):
        super().__init__(rows)
        out, self.scale = rows_of(weight, rows), scale
        cores = cores and is_spatial(weight)
        up = (rank, out) if cores else (out, rank)
        down = (rank, weight.shape[1] if cores else weight[0].numel())
        self.w1_a, self.w1_b = new_parameter(weight, *up), new_parameter(weight, *down)
        self.w2_a, self.w2_b = new_parameter(weight, *up), new_parameter(weight, *down)
        self.t1 = new_parameter(weight, rank, rank, *weight.shape[2:]) if cores else None
        self.t2 = new_parameter(weight, rank, rank, *weight.shape[2:]) if cores else None
        for parameter, std in ((self.w1_a, 0.1), (self.w1_b, 1.0), (self.w2_b, 1.0), (self.t1, 0.1), (self.t2, 0.1)):
            if parameter is not None:
                nn.init.normal_(parameter, std=std)
        nn.init.zeros_(self.w2_a)

    def forward(self, weight: Tensor) -> Tensor:
        if self.t1 is None or self.t2 is None:
            change = (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
        else:
            change = tucker(self.t1, self.w1_a, self.w1_b) * tucker(self.t2, self.w2_a, self.w2_b)
        return add_scaled(weight, change, self.scale)
