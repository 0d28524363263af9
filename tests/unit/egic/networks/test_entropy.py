"""Rates compared with closed forms in double precision, also in the far tails; quantisation and its gradients."""

import math

import pytest
import torch

from egic.networks import entropy
from egic.networks.entropy import FactorizedPrior, gaussian_bits, quantize, quantize_int, sigma_of


def exact_gaussian_bits(d: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    d, sigma = d.double(), sigma.double()
    near, far = (d.abs() - 0.5) / sigma, (d.abs() + 0.5) / sigma
    return -torch.log2((torch.special.erfc(near / math.sqrt(2)) - torch.special.erfc(far / math.sqrt(2))) / 2)


def test_gaussian_bits_equal_the_closed_form():
    """Where double precision can distinguish the two probabilities: offsets up to 30, sigma 0.11 to 256."""
    d, sigma = torch.meshgrid(torch.linspace(-30, 30, 241), sigma_of(torch.arange(64.0)), indexing="ij")
    exact = exact_gaussian_bits(d, sigma)
    known = exact < 900  # beyond, 2^-bits underflows in double precision, too
    assert known.float().mean() > 0.6
    torch.testing.assert_close(gaussian_bits(d, sigma).double()[known], exact[known], rtol=2e-5, atol=1e-5)


def test_probabilities_of_all_integers_add_up_to_one():
    k = torch.arange(-1500.0, 1501.0)
    for sigma in (0.11, 1.0, 17.0, 256.0):
        assert (2 ** -gaussian_bits(k + 0.3, torch.tensor(sigma)).double()).sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("d", [-1e5, -1500.0, -200.0, 200.0, 1500.0, 1e5])
def test_far_tails_are_finite_with_gradients_towards_the_mean(d):
    """The cost there is that of the bin's near edge, (|d| - 1/2)^2 / (2 sigma^2) nats, within 0.1 %."""
    value, sigma = torch.tensor(d, requires_grad=True), torch.tensor(0.11, requires_grad=True)
    bits = gaussian_bits(value, sigma)
    bits.backward()
    edge, nat = abs(d) - 0.5, 1 / math.log(2)
    assert bits.item() == pytest.approx(edge**2 / (2 * 0.11**2) * nat, rel=1e-3)
    assert value.grad.item() == pytest.approx(math.copysign(edge / 0.11**2 * nat, d), rel=1e-3)
    assert sigma.grad.item() == pytest.approx(-(edge**2) / 0.11**3 * nat, rel=1e-3)  # a larger one would cost less


def test_gradients_equal_those_of_the_closed_form():
    d, index = torch.cartesian_prod(torch.linspace(-12, 12, 49), torch.arange(0.0, 64, 3)).unbind(1)
    known = exact_gaussian_bits(d, sigma_of(index)) < 900
    gradients = []
    for bits, dtype in ((gaussian_bits, torch.float32), (exact_gaussian_bits, torch.float64)):
        inputs = [t[known].to(dtype).requires_grad_() for t in (d, index)]
        bits(inputs[0], sigma_of(inputs[1])).sum().backward()
        gradients.append(torch.stack([t.grad.double() for t in inputs]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_log1mexp_is_accurate_without_cancellation():
    d = torch.logspace(-6, 1.5, 200)
    exact = torch.where(d < 1, torch.log(-torch.expm1(-d.double())), torch.log1p(-torch.exp(-d.double())))
    torch.testing.assert_close(entropy.log1mexp(d).double(), exact, rtol=1e-5, atol=0)


@pytest.fixture
def prior():
    torch.manual_seed(0)
    return FactorizedPrior(5)


def test_prior_has_the_papers_parameters_only():
    prior = FactorizedPrior(192)
    assert sum(p.numel() for p in prior.parameters()) == 5_376
    assert {name for name, _ in prior.named_buffers()} == set()


@torch.no_grad()
def test_prior_is_a_distribution_over_integers(prior):
    z = torch.arange(-3000.0, 3001.0).view(1, 1, -1, 1).expand(1, 5, -1, 1)
    total = (2 ** -prior.bits(z).double()).sum((0, 2, 3))
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-4)


@torch.no_grad()
def test_prior_bits_equal_the_difference_of_its_cdf(prior):
    z = torch.randn(2, 5, 3, 4) * 8
    double = FactorizedPrior(5).double()
    double.load_state_dict(prior.state_dict())
    values = z.double().transpose(0, 1).reshape(5, 1, -1)
    high, low = (torch.sigmoid(double.logits(values + s)) for s in (0.5, -0.5))
    expected = -torch.log2(high - low).reshape(5, 2, 3, 4).transpose(0, 1)
    torch.testing.assert_close(prior.bits(z).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [-1e5, 1e5])
def test_prior_tails_are_finite_with_gradients_towards_the_centre(prior, value):
    z = torch.full((1, 5, 1, 1), value, requires_grad=True)
    bits = prior.bits(z)
    bits.sum().backward()
    assert bits.isfinite().all() and (bits > 100).all()
    assert z.grad.isfinite().all() and (z.grad * value > 0).all()


def test_sigma_follows_the_table_and_is_clamped():
    step = (math.log(256) - math.log(0.11)) / 63
    index = torch.tensor([-7.0, 0.0, 20.5, 63.0, 99.0])
    expected = torch.tensor([0.11, 0.11, 0.11 * math.exp(20.5 * step), 256, 256])
    torch.testing.assert_close(sigma_of(index), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "index, upstream, passes",
    [
        (-3.0, 1.0, False),  # gradient descent would move it further below the range
        (-3.0, -1.0, True),
        (70.0, -1.0, False),
        (70.0, 1.0, True),
        (30.0, 1.0, True),
        (30.0, -1.0, True),
    ],
)
def test_a_clamped_index_has_only_gradients_back_into_the_range(index, upstream, passes):
    value = torch.tensor([index], requires_grad=True)
    sigma_of(value).backward(torch.tensor([upstream]))
    assert (value.grad.item() != 0) == passes


def test_quantize_rounds_exactly_with_gradient_1_for_y_and_0_for_mu():
    g = torch.Generator().manual_seed(0)
    y = (torch.randn(1000, generator=g) * 50).requires_grad_()
    mu = (torch.randn(1000, generator=g) * 50).requires_grad_()
    y_hat = quantize(y, mu)
    assert torch.equal(y_hat.detach(), torch.round(y - mu).detach() + mu.detach())
    y_hat.sum().backward()
    assert y.grad.eq(1).all() and mu.grad is None


def test_quantize_int_rounds_with_a_straight_through_gradient():
    z = torch.tensor([-1.2, 0.4, 2.7], requires_grad=True)
    z_hat = quantize_int(z)
    z_hat.sum().backward()
    assert z_hat.tolist() == [-1, 0, 3] and z.grad.eq(1).all()
