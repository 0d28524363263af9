"""No bytes crash the decoder, and no damaged file decodes to a picture."""

import random
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError
from tests.codec_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_MUTATED = 20_000
NUM_WITH_RIGHT_CHECKSUM = 2_000


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def files(model):
    rng = np.random.default_rng(0)
    sizes = ((1, 1), (16, 16), (33, 20), (64, 48))
    return [model.compress(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def mutated(rng: random.Random, files: list[bytes]) -> bytes:
    """A file with one to three mutations: flipped bits, bytes set, cut, repeated, swapped with another file's."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 3)):
        kind, at = rng.randrange(6), rng.randrange(len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randint(1, 16)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            other = rng.choice(files)
            data[at:] = other[min(at, len(other)) :]
    return bytes(data)


def with_right_checksum(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_mutated_files_are_errors(model, files):
    rng = random.Random(0)
    for _ in range(NUM_MUTATED):
        data = mutated(rng, files)
        if data in files:
            continue
        with pytest.raises(BitstreamError):
            model.decompress(data)


@pytest.mark.filterwarnings("error")
def test_mutated_payloads_with_the_right_checksum_are_errors(model, files):
    """The range decoder or the checksum of the symbols detects damage behind a valid first checksum."""
    rng, accepted = random.Random(1), 0
    for _ in range(NUM_WITH_RIGHT_CHECKSUM):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(19, len(data) - 4)] ^= 1 << rng.randrange(8)
        if data in files:
            continue
        try:
            model.decompress(with_right_checksum(bytes(data)))
            accepted += 1  # the range decoder never reads the changed bytes
        except BitstreamError:
            pass
    assert accepted < NUM_WITH_RIGHT_CHECKSUM // 50


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 12))
def test_arbitrary_bytes_are_a_bitstream_error(model, files, tail, keep):
    for data in (tail, files[2][:keep] + tail, with_right_checksum(files[0][:15] + tail + bytes(8))):
        try:
            model.decompress(data)
        except BitstreamError:
            continue
        assert data in files


def test_large_pictures_in_short_files_are_refused_at_once(model, files, monkeypatch):
    """Without decoding or allocating."""
    monkeypatch.setattr("egic.coding.latent_coder.LatentCoder.decode", lambda *args: pytest.fail("decoded"))
    for height, width in ((8192, 8192), (2**14, 2**14), (2**16, 2**16), (1, 2**20), (2**34, 1), (0, 5)):
        sizes = bitstream._varint(height) + bitstream._varint(width)
        with pytest.raises(BitstreamError, match="cannot hold|allowed"):
            model.decompress(with_right_checksum(files[0][:13] + sizes + bytes(100)))
