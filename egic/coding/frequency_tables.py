"""Integer probability tables, the same on every machine.

All computations are float64 +, -, *, / and sqrt on numpy arrays, element by element: IEEE 754 defines their results to
the last bit, but not those of exp, tanh, erf, or sums in an unspecified order. The counts are therefore identical on
every machine (a test compares them with a digest).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

TOTAL = 2**24  # constriction's resolution
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_INV_SQRT_2PI = 0.3989422804014327
_LOG_SCALE_MIN, _LOG_SCALE_STEP = -2.2072749131897207, 0.12305479932808384


def exp(x: np.ndarray) -> np.ndarray:
    """e**x within a few units of the last place, for |x| < 700."""
    k = np.rint(x / (_LN2_HIGH + _LN2_LOW))
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = np.ones_like(r)
    for n in range(16, 0, -1):
        total = 1.0 + total * r / n
    return np.ldexp(total, k.astype(np.int32))


def log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of x > 0, by Newton's iteration on `exp`."""
    _, power = np.frexp(x)
    y = power * _LN2_HIGH
    for _ in range(5):
        e = exp(y)
        y = y + 2.0 * (x - e) / (x + e)
    return y


def tanh(x: np.ndarray) -> np.ndarray:
    e = exp(2.0 * np.clip(x, -300, 300))
    return 1.0 - 2.0 / (e + 1.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + exp(-np.clip(x, -600, 600)))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.where(x > 30, x, log(1.0 + exp(np.minimum(x, 30.0))))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Phi(x) by Marsaglia's series (J. Stat. Software 2004), absolute error below 1e-14 for |x| < 7."""
    square, term, total = x * x, x, x
    for n in range(3, 301, 2):
        term = term * square / n
        total = total + term
    return 0.5 + total * exp(-0.5 * square) * _INV_SQRT_2PI


def counts(cdf: np.ndarray) -> np.ndarray:
    """cdf at n + 1 ascending edges -> (n + 1,) float64 integers: n counts, then escape's, which has the rest.

    All counts are at least 1.
    """
    mass = np.maximum(cdf[1:] - cdf[:-1], 0.0)
    escape = np.maximum(cdf[0] + (1.0 - cdf[-1]), 0.0)
    return np.maximum(np.rint(np.append(mass, escape) * TOTAL), 1.0)


def sigma(index: np.ndarray) -> np.ndarray:
    """Scale of an index in [0, 63]: 0.11 to 256 in equal ratios."""
    return exp(_LOG_SCALE_MIN + _LOG_SCALE_STEP * index)


@lru_cache(maxsize=1)
def gaussian_tables(indices: tuple[float, ...]) -> list[np.ndarray]:
    """For each scale index: counts of the offsets -r..r and of escape, r = ceil(6 sigma) + 1 (length 2r + 2)."""
    sigmas = sigma(np.array(indices))
    reach = np.ceil(6 * sigmas).astype(int) + 1
    edges = [np.minimum((np.arange(-r, r + 2) - 0.5) / s, 7.0).clip(-7.0) for r, s in zip(reach, sigmas, strict=True)]
    cdf = normal_cdf(np.concatenate(edges))
    return [counts(part) for part in np.split(cdf, np.cumsum([len(e) for e in edges])[:-1])]


def factorized_tables(
    matrices: Sequence[np.ndarray], biases: Sequence[np.ndarray], factors: Sequence[np.ndarray], reach: int
) -> np.ndarray:
    """Deep factorized prior (Balle et al. 2018) -> (C, 2 reach + 2) counts of the integers -reach..reach and escape.

    Parameters as the network holds them: per layer matrix (C, out, in), bias (C, out, 1), factor (C, out, 1).
    """
    x = np.arange(-reach, reach + 2) - 0.5
    h = [np.broadcast_to(x, (len(matrices[0]), len(x)))]
    for layer, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
        weight, bias = softplus(matrix.astype(np.float64)), bias.astype(np.float64)
        out = []
        for o in range(weight.shape[1]):
            total = bias[:, o]
            for i, h_i in enumerate(h):  # in a fixed order
                total = total + weight[:, o, i, None] * h_i
            if layer < len(factors):
                total = total + tanh(factors[layer].astype(np.float64)[:, o]) * tanh(total)
            out.append(total)
        h = out
    return np.stack([counts(cdf) for cdf in sigmoid(h[0])])
