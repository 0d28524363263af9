"""The optimizers of `egic.training.optimizers`; bit-equal resume is tested in tests/numerics/test_training.py."""

import pytest
import torch
from torch import nn

from egic.training.optimizers import Muon, make_optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def make(kind: str, net: nn.Sequential, lr: float = 0.01) -> torch.optim.Optimizer:
    return make_optimizer(kind, list(net.parameters()), list(net.modules()), lr)


def step(net: nn.Sequential, opt: torch.optim.Optimizer) -> None:
    opt.zero_grad()
    net(torch.randn(32, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    opt.step()


def test_muon_takes_the_weights_of_linear_layers_and_adamw_the_rest():
    net = network()
    table = nn.Parameter(torch.ones(6, 4))  # a matrix that is no layer's weight, such as a table of gains
    opt = make_optimizer("muon", [*net.parameters(), table], list(net.modules()), 0.01)
    assert isinstance(opt, Muon)
    matrices, others = (group["params"] for group in opt.param_groups)
    assert {id(p) for p in matrices} == {id(net[0].weight), id(net[2].weight)}
    assert len(others) == 5 and any(p is table for p in others)


def test_muon_moves_a_matrix_by_the_same_amount_in_all_directions():
    """Its update is nearly orthogonal, of 0.2 lr root mean square as AdamW's; weights decay by lr * 0.01."""
    net = network()
    before = net[0].weight.detach().clone()
    step(net, make("muon", net, lr=0.01))
    update = (before * (1 - 0.01 * 0.01) - net[0].weight) / 0.01
    values = torch.linalg.svdvals(update) / (0.2 * 16**0.5)
    gradient = torch.linalg.svdvals(net[0].weight.grad)
    assert gradient.max() > 4 * gradient.min()
    assert values.min() > 0.5 and values.max() < 1.5


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_a_loaded_state_goes_on_with_the_same_updates(kind):
    whole, halves, loaded = network(), network(), network()
    opt = make(kind, whole)
    for _ in range(4):
        step(whole, opt)
    first, second = make(kind, halves), make(kind, loaded)
    for _ in range(2):
        step(halves, first)
    loaded.load_state_dict(halves.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        step(loaded, second)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True))


def test_the_learning_rate_of_the_groups_is_what_muon_uses():
    net = network()
    opt = make("muon", net)
    for group in opt.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in net.parameters()]
    step(net, opt)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
