"""Our range coder (constriction) against compressai's rANS on the same symbols and tables; JSON lines.

python tests/bench/bench_entropy_coder.py [--repeat 15]
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from compressai import ans

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from egic.coding import frequency_tables, robust_rounding  # noqa: E402
from egic.coding.range_coder import Decoder, Encoder, Tables  # noqa: E402

NUM_SYMBOLS, NUM_SLICES = 320 * 32 * 48, 10  # of a 512x768 picture


def symbols() -> tuple[np.ndarray, np.ndarray]:
    """Values and tables (slices, n) int32: scale indices N(11, 4), about 1 bit per symbol."""
    rng = np.random.default_rng(0)
    index = rng.normal(11, 4, NUM_SYMBOLS)
    table = robust_rounding.table_of(index, np.zeros(NUM_SYMBOLS, int))
    values = np.rint(rng.normal(0, frequency_tables.sigma(index.clip(0, 63)))).astype(np.int32)
    return values.reshape(NUM_SLICES, -1), table.reshape(NUM_SLICES, -1)


def ours(values: np.ndarray, table: np.ndarray) -> tuple[float, float, int]:
    coder_tables = Tables(robust_rounding.gaussian_tables())
    start, encoder = time.perf_counter(), Encoder()
    for v, t in zip(values, table, strict=True):
        encoder.encode(v, t, coder_tables)
    data = encoder.bytes()
    middle, decoder = time.perf_counter(), Decoder(data)
    decoded = [decoder.decode(t, coder_tables) for t in table]
    end = time.perf_counter()
    assert np.array_equal(np.stack(decoded), values)
    return middle - start, end - middle, len(data)


def rans_tables() -> tuple[list[list[int]], list[int], list[int]]:
    """The same tables as 16-bit cumulative counts, lengths and offsets."""
    cdfs = []
    for counts in robust_rounding.gaussian_tables():
        fine = np.maximum(1, np.floor(counts / counts.sum() * (2**16 - len(counts)))).astype(int)
        fine[fine.argmax()] += 2**16 - fine.sum()
        cdfs.append([0, *np.cumsum(fine).tolist()])
    return cdfs, [len(c) for c in cdfs], [-((len(c) - 2) // 2 - 0) for c in cdfs]


def theirs(values: np.ndarray, table: np.ndarray, prepared: tuple) -> tuple[float, float, int]:
    cdfs, lengths, offsets = prepared
    start, encoder = time.perf_counter(), ans.BufferedRansEncoder()
    for v, t in zip(values, table, strict=True):
        encoder.encode_with_indexes(v.tolist(), t.tolist(), cdfs, lengths, offsets)
    data = encoder.flush()
    middle, decoder = time.perf_counter(), ans.RansDecoder()
    decoder.set_stream(data)
    decoded = [decoder.decode_stream(t.tolist(), cdfs, lengths, offsets) for t in table]
    end = time.perf_counter()
    assert np.array_equal(np.array(decoded), values)
    return middle - start, end - middle, len(data)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=15)
    args = arguments.parse_args()
    values, table = symbols()
    prepared = rans_tables()
    for name, run in (
        ("constriction", lambda: ours(values, table)),
        ("compressai", lambda: theirs(values, table, prepared)),
    ):
        runs = [run() for _ in range(args.repeat + 1)][1:]
        line = {
            "bench": "entropy_coder", "coder": name, "symbols": NUM_SYMBOLS, "bytes": runs[0][2],
            "encode_ms": round(statistics.median(r[0] for r in runs) * 1e3, 1),
            "decode_ms": round(statistics.median(r[1] for r in runs) * 1e3, 1),
            "best_encode_ms": round(min(r[0] for r in runs) * 1e3, 1),
            "best_decode_ms": round(min(r[1] for r in runs) * 1e3, 1),
            "n": args.repeat, "date": datetime.date.today().isoformat(), "machine": platform.machine(),
        }  # fmt: skip
        print(json.dumps(line))


if __name__ == "__main__":
    main()
