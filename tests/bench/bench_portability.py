"""How many files decode under other arithmetic, over many crops; one JSON line per arithmetic.

python tests/bench/bench_portability.py GOLDEN_FOLDER PICTURE_FOLDER... [--crops 200] [--model FOLDER] [--keep FOLDER]
python tests/bench/bench_portability.py GOLDEN_FOLDER --files FOLDER     (files of another machine)
"""

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from egic.coding.bitstream import BitstreamError  # noqa: E402
from egic.model import Model, load  # noqa: E402
from tests.bench.common import commit, picture_files, random_crop  # noqa: E402
from tests.codec_models import full_model  # noqa: E402
from tests.perturbed import variants  # noqa: E402


def crops(folders: list[Path], number: int, size: int = 256) -> Iterator[np.ndarray]:
    """Random square crops of all the folders' pictures in turn, uint8 (size, size, 3)."""
    files = [file for folder in folders for file in picture_files(folder)]
    rng = np.random.default_rng(0)
    for i in range(number):
        yield random_crop(np.asarray(Image.open(files[i % len(files)]).convert("RGB")), size, rng)


def made(model: Model, args: argparse.Namespace) -> Iterator[bytes]:
    """The file of each crop, written with one thread."""
    for i, x in enumerate(crops(args.pictures, args.crops)):
        torch.set_num_threads(1)
        data = model.compress(x)
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{i:04}.egic").write_bytes(data)
        yield data


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("golden", type=Path)
    arguments.add_argument("pictures", type=Path, nargs="*")
    arguments.add_argument("--crops", type=int, default=200)
    arguments.add_argument("--model", type=Path, help="artifact folder instead of the reference's weights")
    arguments.add_argument("--keep", type=Path, help="write the files into this folder, too")
    arguments.add_argument("--files", type=Path, help="decode this folder's files instead of making any")
    args = arguments.parse_args()
    model = load(args.model) if args.model else full_model(args.golden)
    failed, worst, done = {}, {}, 0
    others = list(variants(model))
    for data in (path.read_bytes() for path in sorted(args.files.iterdir())) if args.files else made(model, args):
        torch.set_num_threads(1)
        y_hat, _ = model.decode_latents(data)
        for name, other, threads in others:
            torch.set_num_threads(threads)
            failed.setdefault(name, 0)
            try:
                drift = (other.decode_latents(data)[0].cpu().double() - y_hat.double()).abs().max().item()
                worst[name] = max(worst.get(name, 0.0), drift)
            except BitstreamError:
                failed[name] += 1
        done += 1
        print(done, failed, file=sys.stderr)
    for name in failed:
        line = {
            "bench": "portability", "arithmetic": name, "crops": done, "failed": failed[name],
            "max_drift_of_y_hat": worst.get(name), "weights": str(args.model.name) if args.model else "reference",
            "date": datetime.date.today().isoformat(), "commit": commit(), "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }  # fmt: skip
        print(json.dumps(line))


if __name__ == "__main__":
    main()
