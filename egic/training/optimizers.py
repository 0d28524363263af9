"""The optimizers that a stage can be trained with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MUON = "muon"
ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
OPTIMIZERS = (*ADAMS, MUON)
"""The kinds that `make_optimizer` takes."""
WEIGHT_DECAY = 0.01
"""Decoupled weight decay of Muon's matrices: AdamW's default."""


class Muon(Optimizer):
    """Muon for matrices and AdamW for all other parameters, as one optimizer with one learning rate.

    Muon orthogonalizes the momentum of a matrix; its update is scaled to the size of AdamW's, so that AdamW's learning
    rates hold (arXiv 2502.16982). It reads the learning rate on the host: its steps cannot be captured as a CUDA graph.
    """

    def __init__(self, matrices: Sequence[Tensor], others: Sequence[Tensor], lr: float):
        self.parts: list[Optimizer] = []
        if matrices:  # the discriminator has none: its layers are convolutions
            self.parts += [torch.optim.Muon(matrices, lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")]
        if others:
            self.parts += [torch.optim.AdamW(others, lr, fused=True)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimizer's groups and state."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def make_optimizer(
    kind: str, parameters: Sequence[Tensor], modules: Sequence[nn.Module], lr: float, *, queued: bool = False
) -> Optimizer:
    """An optimizer for the parameters.

    kind: `adam`, `adamw`, or `muon`, which takes the weights of linear layers among `modules` as matrices.
    queued: steps are queued on a GPU, perhaps as a CUDA graph: the learning rate is a tensor there, which a captured
    step reads. Muon's steps are not.
    """
    if kind == MUON:
        linear = {id(module.weight) for module in modules if isinstance(module, nn.Linear)}
        matrices = [p for p in parameters if id(p) in linear]
        return Muon(matrices, [p for p in parameters if id(p) not in linear], lr)
    rate = torch.tensor(lr, device=parameters[0].device) if queued else lr
    return ADAMS[kind](parameters, rate, fused=True, capturable=queued)
