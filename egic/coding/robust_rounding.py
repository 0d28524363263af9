"""Rounding of scale indices that does not depend on the last bits of the arithmetic.

The table of a symbol follows from the scale net's continuous index, whose last bits differ between machines. If the
index is near a rounding edge, encoder and decoder may round it to different tables, and all later symbols would be
wrong. Therefore the edges are shifted: for each group of symbols, the encoder stores the first of `PHASES` shifts of
the rounding grid for which no index of the group is closer to an edge than a margin, which exceeds the differences
between machines. Encoder and decoder then round equally, and the decoder need not know which indices were near an edge.
The cost is about 3.6 margins in bits per symbol: 0.2 % of a file.

The grid is uniform in u = warp(index), whose slope decreases towards small scales, where neighbouring tables hardly
differ and edges can be far apart. Tables exist at multiples of 1/8 of u and are the same for all shifts.
"""

import numpy as np

from egic.coding import frequency_tables

PHASES = 1024
FINE = 8  # tables per unit of u
TOP = 63.0  # largest scale index
_KNEE = 6.0  # index above which the slope of u is 1
_U_TOP = TOP - _KNEE + (_KNEE + 2) ** 2 / 16 - 0.25

# The margin, the largest difference of an index i that files tolerate: ABSOLUTE + RELATIVE * |i|. Noise of 1e-5 (one
# sigma) on every activation of h_s and ChARM changes i by 1.05e-5 i + 1.4e-5 (one sigma), another build of torch or
# float64 by 5e-7 i at most.
# The margin is four sigmas: with such noise, 20 times the difference between machines, about one of 20,000 files of
# 80,000 symbols would not decode. Only the encoder uses these numbers.
ABSOLUTE, RELATIVE = 5.6e-5, 4.2e-5
_TRIES = 4.0  # near-edge indices of a group at any shift; larger groups cost fewer bits, but seldom have a safe one


def warp(index: np.ndarray) -> np.ndarray:
    """u of indices in [0, 63], float64: quadratic with slope (i + 2) / 8 up to the knee, then slope 1."""
    low = np.minimum(index, _KNEE)
    return (low + 2) * (low + 2) / 16 - 0.25 + np.maximum(index - _KNEE, 0)


def _unwarp(u: np.ndarray) -> np.ndarray:
    knee = (_KNEE + 2) ** 2 / 16 - 0.25
    return np.sqrt(np.minimum(u, knee) * 16 + 4) - 2 + np.maximum(u - knee, 0)


NUM_TABLES = int(_U_TOP * FINE) + 1


def gaussian_tables() -> list[np.ndarray]:
    """The NUM_TABLES integer tables, at u = 0, 1/8, 2/8, ..."""
    return frequency_tables.gaussian_tables(tuple(_unwarp(np.arange(NUM_TABLES) / FINE).tolist()))


def table_of(index: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Indices (n,) float and their groups' phases (n,) int -> tables (n,) int32: round on the shifted grid."""
    u = warp(np.clip(np.nan_to_num(index.astype(np.float64)), 0, TOP))
    cell = np.floor(u - phase / PHASES + 0.5).astype(np.int32)
    return np.clip((cell * PHASES + phase) // (PHASES // FINE), 0, NUM_TABLES - 1).astype(np.int32)


def _spread(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u of the indices and the margins of u, which are 0 for indices well outside [0, TOP], since these are clamped."""
    index = index.astype(np.float64)
    margin = ABSOLUTE + RELATIVE * np.abs(index)
    low, high = (warp(np.clip(index + side * margin, 0, TOP)) for side in (-1, 1))
    return (low + high) / 2, (high - low) / 2


def choose(index: np.ndarray) -> tuple[int, np.ndarray]:
    """Indices (n,) in coding order -> the code of the number of groups, and the phase of each group.

    Symbol j belongs to group j modulo their number, so that groups are similar whatever the order of the channels.
    """
    u, drift = _spread(index)
    code = 0
    while num_groups(code) < 2 * drift.sum() / _TRIES:
        code += 1
    while True:
        bad = _bad_phases(u, drift, num_groups(code))
        phases = bad.argmin(1)
        if not bad[np.arange(len(bad)), phases].any():
            return code, phases.astype(np.int32)
        code += 1  # smaller groups; a group of one symbol always has a safe phase


def _bad_phases(u: np.ndarray, drift: np.ndarray, groups: int) -> np.ndarray:
    """(groups, PHASES) bool: shifts for which some u of the group can cross an edge; edges are at phase + 1/2 + k."""
    bad = np.zeros((groups, PHASES), bool)
    center, reach = (u - 0.5) * PHASES, drift * PHASES
    first, last = np.ceil(center - reach), np.floor(center + reach)
    near = np.flatnonzero((first <= last) & (drift > 0))  # without drift it is clamped: the same number everywhere
    first, last, group = first[near].astype(np.int64), last[near].astype(np.int64), near % groups
    for step in range(int((last - first).max(initial=-1)) + 1):
        hit = first + step <= last
        bad[group[hit], (first[hit] + step) % PHASES] = True
    return bad


def num_groups(code: int) -> int:
    """Number of groups of a code in 0..127, 2^(code / 4) rounded: 1 to 2^31."""
    return (16, 19, 23, 27)[code % 4] * 2 ** (code // 4) // 16


def phase_counts() -> np.ndarray:
    """Integer table of the phase: geometric, as the first safe shift is stored (each is safe with probability 0.02)."""
    safe, rest, mass = 0.02, 1.0, []
    for _ in range(PHASES):
        mass.append(rest * safe)
        rest -= mass[-1]
    return np.maximum(np.rint(np.array(mass) * frequency_tables.TOTAL), 1.0)
