import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from egic.coding import robust_rounding


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(-10, 60), st.floats(0.01, 20), st.integers(1, 5000))
def test_indices_that_drift_within_the_margin_keep_their_tables(seed, mean, spread, number):
    rng = np.random.default_rng(seed)
    index = rng.normal(mean, spread, number).astype(np.float32)
    code, phase = robust_rounding.choose(index)
    phase = np.resize(phase, number)
    assert len(phase) == number and code >= 0
    table = robust_rounding.table_of(index, phase)
    margin = robust_rounding.ABSOLUTE + robust_rounding.RELATIVE * np.abs(index)
    for drift in (-1, 1, rng.uniform(-1, 1, number)):
        assert np.array_equal(robust_rounding.table_of(index + 0.999 * drift * margin, phase), table)


def test_indices_on_a_rounding_edge_keep_their_tables():
    """With indices on the edges of all phases, groups are split until each has a phase without edges."""
    index = np.tile(np.arange(0, 2000) / 100, 3).astype(np.float32)
    code, phase = robust_rounding.choose(index)
    phase = np.resize(phase, len(index))
    low, high = (robust_rounding.table_of(index + d, phase) for d in (-5e-5, 5e-5))
    assert np.array_equal(low, high)


def test_tables_are_close_to_the_index():
    index = np.linspace(-5, 70, 500)
    for phase in (0, 1, 500, 1023):
        u = robust_rounding.table_of(index, np.full(500, phase)) / robust_rounding.FINE
        assert np.abs(u - robust_rounding.warp(index.clip(0, 63))).max() <= 0.5 + 1 / robust_rounding.FINE


def test_clamped_indices_cost_nothing():
    code, phase = robust_rounding.choose(np.full(10_000, -3.0))
    assert len(phase) == 1 and phase[0] == 0


def test_non_finite_indices_do_not_crash():
    assert (
        robust_rounding.table_of(np.array([np.nan, np.inf, -np.inf, 1e30]), np.zeros(4, int)).max()
        < robust_rounding.NUM_TABLES
    )
