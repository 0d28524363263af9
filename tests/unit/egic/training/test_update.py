"""Updates clip gradients, and are not made if a loss or gradient is not finite."""

import pytest
import torch
from torch import nn

from egic.errors import NonFiniteError
from egic.training.update import Guard, update


def linear() -> tuple[nn.Linear, torch.optim.Optimizer]:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer, torch.optim.SGD(layer.parameters(), lr=1.0)


@pytest.mark.parametrize("clip_norm, step", [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_gradients_are_clipped_to_the_norm(clip_norm, step):
    layer, opt = linear()
    norm = update(opt, layer(torch.tensor([3.0, 4.0])).sum(), clip_norm)
    assert norm.item() == pytest.approx(5)  # before clipping
    assert layer.weight.norm().item() == pytest.approx(step, rel=1e-5)
    torch.testing.assert_close(layer.weight / layer.weight.norm(), torch.tensor([[-0.6, -0.8]]))


def test_gradients_of_earlier_steps_are_cleared():
    layer, opt = linear()
    layer(torch.ones(2)).sum().backward()
    assert update(opt, layer(torch.tensor([3.0, 4.0])).sum(), 0.0).item() == pytest.approx(5)


@pytest.mark.parametrize("x", [float("nan"), float("inf")])
def test_a_non_finite_term_is_named_and_no_update_is_made(x):
    layer, opt = linear()
    term = layer(torch.tensor([x, 1.0])).sum()
    with pytest.raises(NonFiniteError, match="non-finite bpp "):
        update(opt, term, 1.0, bpp=term, mse255=torch.tensor(1.0))
    assert not layer.weight.any()


def test_a_non_finite_gradient_of_finite_terms_is_named():
    layer, opt = linear()
    loss = layer(torch.ones(2)).sum().abs().sqrt()  # value 0, slope infinite
    with pytest.raises(NonFiniteError, match="non-finite gradient"):
        update(opt, loss, 0.0, seg=loss)
    assert not layer.weight.any()


def weights_after(optimizer: type[torch.optim.Optimizer], xs: list[list[float]], guard: Guard | None):
    """The weights after each update on these inputs; initially ones."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    opt, found = optimizer(layer.parameters(), lr=0.1, fused=True), []
    for x in xs:
        update(opt, layer(torch.tensor(x)).sum(), 1.0, guard)
        found.append(layer.weight.detach().clone())
    return found


@pytest.fixture
def guard() -> Guard:
    return Guard(torch.device("cpu"))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_guarded_updates_equal_plain_ones(optimizer, guard):
    """Bit for bit, since the scaler's scale is 1."""
    xs = [[3.0, 4.0], [-1.0, 2.0], [0.5, 0.25]]
    plain = weights_after(optimizer, xs, None)
    assert all(torch.equal(a, b) for a, b in zip(weights_after(optimizer, xs, guard), plain, strict=True))
    assert guard.stopped.item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_no_update_is_made_after_the_first_non_finite_one(optimizer, bad, guard):
    """No error is raised, and later finite gradients change no weights."""
    first, *later = weights_after(optimizer, [[3.0, 4.0], [bad, 1.0], [3.0, 4.0], [1.0, 2.0]], guard)
    assert not torch.equal(first, torch.ones(1, 2))
    assert guard.stopped.item() == 1 and all(torch.equal(first, weights) for weights in later)


def test_an_overflowing_gradient_norm_stops_updates(guard):
    """The loss and each gradient are finite, but the norm is not."""
    (weights,) = weights_after(torch.optim.Adam, [[3e38, -3e38]], guard)
    assert guard.stopped.item() == 1 and torch.equal(weights, torch.ones(1, 2))
