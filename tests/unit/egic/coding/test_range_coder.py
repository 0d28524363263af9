import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egic.coding import robust_rounding
from egic.coding.bitstream import BitstreamError
from egic.coding.range_coder import MAX_SYMBOL, Decoder, Encoder, Tables

TABLES = Tables(robust_rounding.gaussian_tables())
value = st.one_of(
    st.integers(-3, 3), st.integers(-3000, 3000), st.sampled_from([MAX_SYMBOL - 1, 1 - MAX_SYMBOL, 2**15, 2**16 + 1])
)
symbols = st.lists(st.tuples(value, st.integers(0, robust_rounding.NUM_TABLES - 1)), max_size=60)


@settings(deadline=None, max_examples=300)
@given(st.lists(symbols, max_size=4))
def test_decoded_values_equal_the_encoded_ones(batches):
    encoder = Encoder()
    batches = [np.array(b, np.int32).reshape(-1, 2) for b in batches]
    for b in batches:
        encoder.encode(b[:, 0], b[:, 1], TABLES)
        encoder.uniform([len(b)], 100)
    decoder = Decoder(encoder.bytes())
    for b in batches:
        assert np.array_equal(decoder.decode(b[:, 1], TABLES), b[:, 0])
        assert decoder.uniform(1, 100)[0] == len(b)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(1, 400))
def test_any_bytes_decode_to_something_or_raise(data, number):
    try:
        assert len(Decoder(data).decode(np.arange(number) % robust_rounding.NUM_TABLES, TABLES)) == number
    except BitstreamError:
        pass


def test_length_is_close_to_the_ideal():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 300, 50_000)
    sigma = np.exp(np.log(0.11) + robust_rounding._unwarp(table / robust_rounding.FINE) * np.log(256 / 0.11) / 63)
    values = np.rint(rng.normal(0, sigma)).astype(np.int32)
    encoder = Encoder()
    encoder.encode(values, table, TABLES)
    bits = 0.0
    for t in np.unique(table):
        counts, reach = TABLES._counts[t], TABLES.reach[t]
        inside = values[(table == t) & (np.abs(values) <= reach)] + reach
        bits -= np.log2(counts[inside] / counts.sum()).sum()
    assert len(encoder.bytes()) <= bits / 8 * 1.0005 + 8


def test_invalid_values_and_tables_are_refused():
    with pytest.raises(ValueError, match="broken"):
        Encoder().encode(np.array([-(2**31) + 1], np.int32), np.array([0]), TABLES)
