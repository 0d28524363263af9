"""The frequency tables are part of the file format: they must never change, and approximate the entropy models well."""

import hashlib
import math

import numpy as np
import torch

from egic.coding import frequency_tables, robust_rounding
from egic.coding.latent_coder import Z_REACH, LatentCoder
from egic.networks import entropy


def digest(counts) -> str:
    return hashlib.sha256(b"".join(np.asarray(c).astype("<i8").tobytes() for c in counts)).hexdigest()[:16]


def test_elementary_functions_are_accurate():
    x = np.linspace(-30, 30, 4001)
    np.testing.assert_allclose(frequency_tables.exp(x), np.exp(x), rtol=1e-14)
    np.testing.assert_allclose(frequency_tables.log(np.exp(x)), x, atol=1e-14)
    np.testing.assert_allclose(frequency_tables.tanh(x), np.tanh(x), atol=1e-14)
    np.testing.assert_allclose(frequency_tables.softplus(x), np.logaddexp(0, x), atol=1e-13)
    np.testing.assert_allclose(frequency_tables.sigmoid(x), 1 / (1 + np.exp(-x)), atol=1e-14)
    x = np.linspace(-7, 7, 999)
    np.testing.assert_allclose(
        frequency_tables.normal_cdf(x), [0.5 * math.erfc(-v / math.sqrt(2)) for v in x], atol=1e-14
    )


def test_gaussian_tables_never_change():
    assert digest(robust_rounding.gaussian_tables()) == "3da636a5d9d6d914"
    assert digest([robust_rounding.phase_counts()]) == "fe6e26e98d76a451"


def test_prior_tables_never_change():
    rng = np.random.RandomState(0)  # NumPy never changes its stream
    shapes = [(5, 3, 1), (5, 3, 3), (5, 1, 3)]
    matrices = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    biases = [rng.standard_normal((5, n, 1)).astype(np.float32) for n in (3, 3, 1)]
    factors = [rng.standard_normal((5, 3, 1)).astype(np.float32) for _ in range(2)]
    assert digest(frequency_tables.factorized_tables(matrices, biases, factors, 64)) == "b0871f3df94e482f"


def test_sigma_equals_the_entropy_models():
    index = np.linspace(0, 63, 100)
    np.testing.assert_allclose(
        frequency_tables.sigma(index), entropy.sigma_of(torch.from_numpy(index)).numpy(), rtol=1e-12
    )


def test_gaussian_tables_code_at_the_entropy_of_the_model():
    """At its own scale index, each table's expected length exceeds the entropy by less than 0.1 % + 0.001 bit."""
    u = np.arange(robust_rounding.NUM_TABLES) / robust_rounding.FINE
    sigma = frequency_tables.sigma(robust_rounding._unwarp(u))
    for counts, s in list(zip(robust_rounding.gaussian_tables(), sigma, strict=True))[::16]:
        reach = len(counts) // 2 - 1
        d = torch.arange(-reach, reach + 1, dtype=torch.float64)
        ideal = entropy.gaussian_bits(d, torch.tensor(s)).numpy()
        p = 2**-ideal
        ours = -np.log2(counts[:-1] / counts.sum())
        assert (p * ours).sum() <= (p * ideal).sum() * 1.001 + 1e-3


@torch.no_grad()
def test_prior_tables_code_at_the_entropy_of_the_model():
    from tests.codec_models import tiny_model

    codec = tiny_model().codec
    coder = LatentCoder(codec)
    z = torch.arange(-20.0, 21).view(1, 1, -1, 1).expand(1, 32, -1, 1)
    bits = codec.prior.bits(z)[0, :, :, 0].numpy()
    for c in range(32):
        counts = coder._z._counts[c]
        ours = -np.log2(counts / counts.sum())[Z_REACH - 20 : Z_REACH + 21]
        likely = bits[c] < 12
        np.testing.assert_allclose(ours[likely], bits[c][likely], atol=2e-3)
