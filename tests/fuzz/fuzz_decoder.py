"""Coverage-guided fuzzing of the decoder, outside CI: `pip install atheris; python tests/fuzz/fuzz_decoder.py CORPUS`.

Checksums are made right for half of the inputs, so that mutations reach the range decoder. Any exception but
BitstreamError is a finding; libFuzzer's own flags (-max_total_time=3600 -timeout=2 -rss_limit_mb=4096) bound time and
memory.
"""

import sys
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["egic"]):
    from egic.coding.bitstream import BitstreamError
    from tests.codec_models import tiny_model

MODEL = tiny_model()


def one_input(data: bytes) -> None:
    if data[:1] < b"\x80" and len(data) > 4:
        data = data[1:-4] + zlib.crc32(data[1:-4]).to_bytes(4, "little")
    try:
        MODEL.decompress(data, max_pixels=2**20)
    except BitstreamError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
