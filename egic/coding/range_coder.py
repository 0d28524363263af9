"""Range coding of integer arrays with many static tables, by `constriction`: few calls on long arrays, no lists.

The symbols of a batch are sorted by table, so that each call uses one table.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import constriction  # its submodules are attributes, not importable names
import numpy as np

from egic.coding.bitstream import BitstreamError
from egic.errors import UserError

Categorical: TypeAlias = constriction.stream.model.Categorical
Uniform: TypeAlias = constriction.stream.model.Uniform
MAX_SYMBOL = 2**30  # magnitude; only broken networks produce larger ones
_CHUNK = 15  # bits of an escaped magnitude per uniform symbol


class Tables:
    """Tables of the integers -reach..reach and escape (2 reach + 2 counts each), converted to models on first use."""

    def __init__(self, counts: Sequence[np.ndarray] | np.ndarray):
        self._counts = counts
        self._models: dict[int, Categorical] = {}
        self.reach = np.array([len(c) // 2 - 1 for c in counts], np.int32)

    def model(self, table: int) -> Categorical:
        if table not in self._models:
            self._models[table] = Categorical(self._counts[table], perfect=False)
        return self._models[table]


def _runs(table: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The permutation that sorts by table, and (table, start, end) of each table in it."""
    order = np.argsort(table.astype(np.int16), kind="stable")  # numpy has a radix sort for 16 bits: ten times as fast
    number = np.bincount(table)
    ends = np.cumsum(number)
    return order, [(int(t), int(ends[t] - number[t]), int(ends[t])) for t in np.flatnonzero(number)]


def _chunks(bits: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """(which values, shift, size) of the pieces of at most 15 bits that values of `bits` bits (n,) are coded in."""
    for number in np.unique(bits[bits > 0]).tolist():
        which = np.flatnonzero(bits == number)
        for shift in range((number - 1) // _CHUNK * _CHUNK, -1, -_CHUNK):
            yield which, shift, min(number - shift, _CHUNK)


class Encoder:
    """Encodes symbols in the order of the calls; `bytes` returns the stream."""

    def __init__(self):
        self._coder = constriction.stream.queue.RangeEncoder()

    def uniform(self, values: np.ndarray | Sequence[int], size: int) -> None:
        """Integers in [0, size), all equally likely."""
        self._coder.encode(np.ascontiguousarray(values, np.int32), Uniform(size))

    def encode_plain(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Indices into one table without escape."""
        self._coder.encode(np.ascontiguousarray(values, np.int32), Categorical(counts, perfect=False))

    def encode(self, values: np.ndarray, table: np.ndarray, tables: Tables) -> None:
        """values int32 (n,), each with its table (n,); values outside a table's range follow as escapes."""
        if not len(values):
            return
        order, runs = _runs(table)
        reach = tables.reach[table]
        far = np.abs(values) > reach
        coded = np.where(far, 2 * reach + 1, values + reach)[order].astype(np.int32)
        for t, start, end in runs:
            self._coder.encode(coded[start:end], tables.model(t))
        if far.any():
            self._escapes(values[far], reach[far])

    def _escapes(self, values: np.ndarray, reach: np.ndarray) -> None:
        """Elias-gamma in batches: number of bits of the excess, signs, then the bits below the leading one."""
        excess = np.abs(values.astype(np.int64)) - reach
        if excess.max() >= MAX_SYMBOL:
            raise UserError("latents are too large to code; the model is broken")
        bits = np.frexp(excess.astype(np.float64))[1] - 1
        self.uniform(bits, 32)
        self.uniform(values < 0, 2)
        rest = excess - (1 << bits.astype(np.int64))
        for which, shift, size in _chunks(bits):
            self.uniform(rest[which] >> shift & (2**size - 1), 2**size)

    def bytes(self) -> bytes:
        """The stream so far, without trailing zeros, which the decoder appends."""
        return self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class Decoder:
    """Decodes with the same calls as the encoder's. Raises BitstreamError for bytes that no encoder writes."""

    def __init__(self, data: bytes):
        words = np.frombuffer(data + bytes(-len(data) % 4 + 8), ">u4")
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))

    def _decode(self, model: Categorical | Uniform, number: int) -> np.ndarray:
        try:
            return self._coder.decode(model, number)
        except (AssertionError, ValueError) as e:  # constriction raises them for invalid data
            raise BitstreamError("damaged .egic file: its payload is impossible") from e

    def uniform(self, number: int, size: int) -> np.ndarray:
        return self._decode(Uniform(size), number)

    def decode_plain(self, number: int, counts: np.ndarray) -> np.ndarray:
        return self._decode(Categorical(counts, perfect=False), number)

    def decode(self, table: np.ndarray, tables: Tables) -> np.ndarray:
        """One int32 value for each entry of `table` (n,)."""
        values = np.empty(len(table), np.int32)
        if not len(table):
            return values
        order, runs = _runs(table)
        coded = np.empty(len(table), np.int32)
        for t, start, end in runs:
            coded[start:end] = self._decode(tables.model(t), end - start)
        values[order] = coded
        reach = tables.reach[table]
        far = values == 2 * reach + 1
        values -= reach
        if far.any():
            values[far] = self._escapes(reach[far])
        return values

    def _escapes(self, reach: np.ndarray) -> np.ndarray:
        bits = self.uniform(len(reach), 32)
        negative = self.uniform(len(reach), 2) == 1
        if bits.max() >= 30:
            raise BitstreamError("damaged .egic file: a latent is impossibly large")
        excess = 1 << bits.astype(np.int64)
        for which, shift, size in _chunks(bits):
            excess[which] += self.uniform(len(which), 2**size).astype(np.int64) << shift
        return np.where(negative, -(reach + excess), reach + excess).astype(np.int32)
