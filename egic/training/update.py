"""The update at the end of a training step: backward pass, clipping, and no update from a loss that is not finite."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from egic.errors import NonFiniteError


class Guard:
    """Skips every update from the first non-finite loss or gradient on, without waiting for the device.

    For steps that are queued on a GPU (jobs/training/cuda_graphs.py): the answer is a tensor on the device, and
    `torch.amp.GradScaler`, with a scale of 1, hands it to optimizers that leave out an update by themselves (fused Adam
    and AdamW do).
    """

    def __init__(self, device: torch.device):
        self.stopped = torch.zeros((), device=device)
        """1 from the first step on whose loss or gradient is not finite."""
        self.scaler = torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1)
        self.scaler.scale(self.stopped)  # it makes its tensors when first used: before a step is captured

    def step(self, opt: Optimizer, gradient: Tensor, finite: Tensor) -> None:
        """`opt.step()`, unless this or an earlier step is not finite. gradient: any one of the optimizer's."""
        self.stopped.logical_or_(~finite)
        gradient.masked_fill_(self.stopped > 0, torch.nan)  # the scaler looks at gradients, and only at this step's
        self.scaler.step(opt)
        self.scaler.update()


def update(opt: Optimizer, loss: Tensor, clip_norm: float, guard: Guard | None = None, **terms: Tensor) -> Tensor:
    """Backward pass, gradient clipping (0 = off) and one optimizer step; returns the gradient norm before clipping.

    Raises NonFiniteError before anything is changed, naming the term. With a guard nothing is raised, and the guard
    decides on the device whether the update is made.
    """
    opt.zero_grad(set_to_none=True)
    (guard.scaler.scale(loss) if guard else loss).backward()
    parameters = [p for group in opt.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm if clip_norm > 0 else float("inf"), foreach=True)
    finite = torch.isfinite(norm + loss.detach())
    if guard:
        guard.step(opt, next(p.grad for p in parameters if p.grad is not None), finite)
        return norm
    if not finite:
        raise not_finite(terms, f"loss {loss.item():g}, gradient norm {norm.item():g}")
    opt.step()
    return norm


def not_finite(terms: Mapping[str, Tensor], values: str) -> NonFiniteError:
    """What to raise: names those of the 0-d terms that are not finite; the gradient, if all are. `values` follow."""
    bad = [name for name, term in terms.items() if not torch.isfinite(term)] or ["gradient"]
    return NonFiniteError(f"non-finite {', '.join(bad)} ({values})")
