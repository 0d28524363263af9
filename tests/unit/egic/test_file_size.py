"""Sizes of files as people write them."""

import pytest

from egic.errors import UserError
from egic.file_size import bpp, parse_size


@pytest.mark.parametrize(
    "text, size",
    [("20000", 20_000), ("20kB", 20_000), ("20k", 20_000), ("20K", 20_000), ("0.1MB", 100_000), (" 1.5 mb ", 1_500_000),
     ("48KiB", 49_152), ("2Gi", 2**31), (".5k", 500), ("1b", 1), ("0.0015k", 1)],
)  # fmt: skip
def test_units_and_rounding(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "20 kilobytes", "-5", "1e3", "1,2,3", "0", "0.1", "nan", "20kBit", "5 5"])
def test_other_text_is_a_users_mistake(text):
    with pytest.raises(UserError, match="such as 20kB|20kB, 0.1MB"):
        parse_size(text)


def test_a_decimal_comma_is_named():
    with pytest.raises(UserError, match="'0,1MB' has a decimal comma; write '0.1MB'"):
        parse_size("0,1MB")


def test_bpp_is_file_bits_per_original_pixel():
    assert bpp(1000, 50, 40) == 4.0
