"""Optimizers are set up for their device, whatever device their state was saved on."""

import pytest
import torch
from torch import nn

from jobs.training.train_state import load_optimizer, set_learning_rate


def optimizer(lr: float | torch.Tensor, capturable: bool) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(3))
    return weight, torch.optim.Adam([weight], lr, fused=True, capturable=capturable)


def step(weight: nn.Parameter, opt: torch.optim.Optimizer) -> None:
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    opt.step()


@pytest.mark.parametrize("was_tensor, is_tensor", [(False, True), (True, False)])
def test_a_state_can_be_loaded_on_another_kind_of_device(was_tensor, is_tensor):
    """From a GPU, whose optimizers are capturable with a tensor as learning rate, to a CPU, and back."""
    weight, opt = optimizer(torch.tensor(0.5) if was_tensor else 0.5, was_tensor)
    step(weight, opt)
    lr = torch.tensor(0.25) if is_tensor else 0.25
    other, loaded = optimizer(lr, is_tensor)
    other.data.copy_(weight.data)
    load_optimizer(loaded, opt.state_dict())
    (group,) = loaded.param_groups
    assert group["lr"] is lr and group["capturable"] == is_tensor
    set_learning_rate(opt, 0.125)
    set_learning_rate(loaded, 0.125)
    step(weight, opt)
    step(other, loaded)
    assert torch.equal(weight, other), "the moments are loaded"


def test_a_captured_learning_rate_is_changed_in_place():
    lr = torch.tensor(0.5)
    _, opt = optimizer(lr, True)
    set_learning_rate(opt, 0.125)
    assert opt.param_groups[0]["lr"] is lr and lr.item() == 0.125
