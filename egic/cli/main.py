"""egic compress | decompress | info | demo | models | evaluate | report | compare | export | import-reference.

Uses argparse and imports torch only to code pictures, so that `egic --help` and `egic info` start in under a second.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from egic import __version__
from egic.cli import demo as cli_demo
from egic.cli import files, model_refs
from egic.cli.extensions import extension
from egic.cli.files import Task
from egic.coding import bitstream
from egic.coding.bitstream import MAX_QUALITY
from egic.errors import UserError, out_of_memory, quiet, reason, run_main
from egic.file_size import parse_size
from egic.shipped import shipped_model

if TYPE_CHECKING:
    import numpy as np

    from egic.model import Model

SUFFIX = ".egic"
_REF = "artifact folder, a file in one, models:/egic-orp@best (MLflow), or hf://owner/name[@revision] (Hugging Face)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = _Parser(prog="egic", description="EGIC, a generative image codec.")
    top.add_argument("--version", action="version", version=f"egic {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar=" | ".join([*_COMMANDS, *_JOBS]))
    compress = commands.add_parser("compress", help="pictures -> .egic files")
    decompress = commands.add_parser("decompress", help=".egic files -> pictures")
    command: argparse.ArgumentParser
    for command, what, made in ((compress, "pictures", ".egic"), (decompress, ".egic files", ".png")):
        command.add_argument("inputs", nargs="+", metavar="IN", help=f"{what}, folders of them, or - for stdin")
        command.add_argument(
            "-o", "--output", metavar="OUT", help=f"file, folder for several, or - (default: beside IN, {made})"
        )
        command.add_argument("-f", "--force", action="store_true", help="overwrite outputs")
        command.add_argument("--stats", action="store_true", help="print rate, quality and time of each picture")
        command.add_argument("-q", "--quiet", action="store_true", help="print only warnings and errors")
    rate = compress.add_mutually_exclusive_group()
    rate.add_argument("--quality", type=int, metavar="Q", help=f"0 (the smallest file) to {MAX_QUALITY} (default: 50)")
    rate.add_argument("--bpp", type=float, metavar="B", help="the best quality with at most B bits per pixel: 0.2")
    rate.add_argument("--max-bytes", metavar="SIZE", help="the best quality with at most SIZE bytes: 20kB, 0.1MB")
    demo = cli_demo.add(commands)
    for command in (compress, decompress, demo):
        command.add_argument("-m", "--model", metavar="REF", help=f"{_REF} (default: the model of this package)")
        command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
        command.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
        command.add_argument(
            "--precision", choices=("float32", "bfloat16"), default="float32",
            help="of the transforms; files decode with either (default: float32)",
        )  # fmt: skip
    decompress.add_argument(
        "--alpha", type=float, metavar="A", help="0 most faithful ... 1 most realistic (default: 1; needs an ORP model)"
    )
    info = commands.add_parser("info", help="size, rate and model of .egic files, and whether they are complete")
    info.add_argument("files", nargs="+", metavar="FILE", help=".egic files, or - for stdin")
    models = commands.add_parser(
        "models", help="the model of this package and those in MLflow's registry, or models in folders"
    )
    models.add_argument("folders", nargs="*", metavar="FOLDER", type=Path, help="list models in these folders instead")
    report = commands.add_parser("report", help="write the report of an evaluation, optionally with other codecs")
    report.add_argument("folder", metavar="FOLDER", type=Path, help="folder that egic evaluate wrote")
    report.add_argument(
        "--anchors",
        metavar="CODECS",
        help="other codecs at the sizes of the model's files: jpeg,webp,avif,jxl,bpg,vtm, and compressai's learned "
        "bmshj2018-hyperprior,mbt2018-mean,cheng2020-attn (downloaded, or files in EGIC_WEIGHTS)",
    )
    report.add_argument("--images", metavar="FOLDER", type=Path, help="folder of the evaluated pictures, for --anchors")
    commands.add_parser("evaluate", help="measure models on folders of pictures, with real files (needs egic[train])")
    commands.add_parser("compare", help="one report of all evaluations in MLflow (needs egic[train])")
    export = commands.add_parser("export", help="a model as a folder for the Hugging Face hub, with a model card")
    export.add_argument("model", metavar="MODEL", help=_REF)
    export.add_argument("--license", default="apache-2.0", metavar="ID", help="of the weights (default: apache-2.0)")
    export.add_argument(
        "--half", action="store_true", help="round the weights to float16: half the size, incompatible .egic files"
    )
    reference = commands.add_parser(
        "import-reference", help="weights of the TensorFlow reference -> a model",
        description="Weights of the TensorFlow reference (codec, codec with ORP head, discriminator) -> a model.",
    )  # fmt: skip
    reference.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path,
        help="prefix of a tf.train.Checkpoint (.../ckpt-7), the folder of a training's backup, or a SavedModel's",
    )  # fmt: skip
    reference.add_argument(
        "--stage", choices=("mse-codec", "gan"),
        help="the stage that trained a codec, for --init-from (default: gan)",
    )  # fmt: skip
    for command in (export, reference):
        command.add_argument("-o", "--output", required=True, metavar="FOLDER", type=Path, help="a new folder")
        command.add_argument("-f", "--force", action="store_true", help="overwrite an existing model")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 if any input failed. See `run_main` for others."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in _JOBS:  # commands of the pipeline, which parse their own options
        name, rest = argv[0], argv[1:]
        return run_main(lambda: extension(name, f"egic {name} needs")(rest)) or 0
    args = parser().parse_args(argv)
    try:
        return run_main(lambda: _COMMANDS[args.command](args)) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _each(tasks: list[Task], work: Callable[[Task], str], quiet: bool = False) -> int:
    """Call `work` for every task and print the line that it returns on stderr, unless `quiet`.

    An error is printed as one line, and the next task follows. Returns the exit status.
    """
    failed = 0
    for number, task in enumerate(tasks, 1):
        place = f"[{number}/{len(tasks)}] " if len(tasks) > 1 else ""
        try:
            line = work(task)
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, BrokenPipeError) or (isinstance(error, RuntimeError) and not out_of_memory(error)):
                raise
            failed += 1
            print(f"{place}error: {task.name}: {reason(error)}", file=sys.stderr)
        else:
            if line and not quiet:
                print(f"{place}{task.name} -> {line}", file=sys.stderr)
    if failed and len(tasks) > 1:
        print(f"{failed} of {len(tasks)} failed", file=sys.stderr)
    return 2 if failed else 0


def _load(args: argparse.Namespace) -> "Model":
    """Load the model of --model on the device of --device. Raises UserError."""
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads must be at least 1, got {args.threads}")
    folder = model_refs.folder_of(args.model)
    import torch  # takes seconds, so after the checks above

    from egic.model import load

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {args.device} cannot be used ({reason}); try --device cpu") from error
    return load(folder, device, args.precision)


def _rate(args: argparse.Namespace) -> dict[str, Any]:
    """--quality, --bpp or --max-bytes, if given, as keyword argument of `Model.compress`. Raises UserError."""
    if args.quality is not None and not 0 <= args.quality <= MAX_QUALITY:
        raise UserError(f"--quality must lie in 0..{MAX_QUALITY} (0 the smallest file), got {args.quality}")
    if args.bpp is not None and not 0 < args.bpp < float("inf"):
        raise UserError(f"--bpp must be a positive number of bits per pixel, got {args.bpp}")
    max_bytes = None if args.max_bytes is None else parse_size(args.max_bytes)
    given = {"quality": args.quality, "bpp": args.bpp, "max_bytes": max_bytes}
    return {name: value for name, value in given.items() if value is not None}


def _compress(args: argparse.Namespace) -> int:
    from egic import pictures

    rate = _rate(args)
    folders = [Path(name) for name in args.inputs if Path(name).is_dir()]
    if left := pictures.left_out(path.name for folder in folders for path in files.files_below(folder)):
        print(f"warning: left out, because their formats cannot be read: {left}", file=sys.stderr)
    tasks = files.plan(args.inputs, args.output, SUFFIX, pictures.READ_SUFFIXES)
    files.check_any_free(tasks, args.force)
    model = _load(args)
    if rate and not model.has_quality:
        option = "--" + next(iter(rate)).replace("_", "-")
        raise UserError(f"this model codes at one rate only, so {option} has no meaning: leave it out")

    def work(task: Task) -> str:
        files.check_free(task, args.force)
        image, notes = pictures.read(files.read(task))
        for note in notes:
            print(f"warning: {task.name}: {note}", file=sys.stderr)
        start = time.perf_counter()
        data = model.compress(image, **rate)
        time_s = time.perf_counter() - start
        files.write(task, data)
        if args.stats:
            print(f"{task.name}: {_quality(model, image, data, time_s)}", file=_beside(task))
            if sys.stdout.isatty():
                return ""  # --stats printed it already on stderr
        quality = bitstream.unpack(data)[0].quality
        at = "" if quality is None else f" at quality {quality}"
        bpp = 8 * len(data) / image[..., 0].size
        return f"{task.made}: {len(data)} bytes, {bpp:.4f} bpp{at}, {time_s:.2f} s"

    return _each(tasks, work, args.quiet)


def _decompress(args: argparse.Namespace) -> int:
    from egic import pictures

    tasks = files.plan(args.inputs, args.output, ".png", (SUFFIX,))
    for task in tasks:
        pictures.check_suffix(task.target.suffix if task.target else ".png")
    if args.alpha is not None and not 0 <= args.alpha <= 1:  # before the model is fetched
        raise UserError(f"--alpha must lie in [0, 1] (0 most faithful, 1 most realistic), got {args.alpha}")
    files.check_any_free(tasks, args.force)
    model = _load(args)
    if args.alpha is not None:
        model.check_alpha(args.alpha)

    def work(task: Task) -> str:
        files.check_free(task, args.force)
        data = files.read(task)
        start = time.perf_counter()
        image = model.decompress(data, args.alpha)
        time_s = time.perf_counter() - start
        files.write(task, pictures.write(image, task.target.suffix if task.target else ".png"))
        size = f"{image.shape[1]} x {image.shape[0]}"
        if args.stats:
            print(
                f"{task.name}: {8 * len(data) / image[..., 0].size:.4f} bpp, {time_s:.2f} s decompress",
                file=_beside(task),
            )
            if sys.stdout.isatty():
                return ""
        return f"{task.made}: {size}, {time_s:.2f} s"

    return _each(tasks, work, args.quiet)


def _beside(task: Task):
    """The stream for lines of text: stderr if the output is written to stdout, else stdout."""
    return sys.stdout if task.target else sys.stderr


def _quality(model: "Model", image: "np.ndarray", data: bytes, compress_s: float) -> str:
    """Rate, PSNR, MS-SSIM (for sides of at least 161 pixels) and times of a picture, decoded at the default alpha."""
    import torch

    from egic.metrics import distortion

    start = time.perf_counter()
    decoded = model.decompress(data)
    decompress_s = time.perf_counter() - start
    x, x_hat = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None] for a in (image, decoded))
    quality = f"{distortion.psnr_db(x_hat, x).item():.2f} dB PSNR"
    if min(x.shape[2:]) > 160:
        from pytorch_msssim import ms_ssim

        quality += f", {ms_ssim(x_hat.float(), x.float(), data_range=255).item():.4f} MS-SSIM"
    bpp = distortion.bpp(len(data), *image.shape[:2])
    quality += " at alpha 1" if model.orp else ""
    return f"{bpp:.4f} bpp, {quality}, {compress_s:.2f} s compress, {decompress_s:.2f} s decompress"


def _info(args: argparse.Namespace) -> int:
    def work(task: Task) -> str:
        data = files.read(task)
        header, payload = bitstream.unpack(data)
        pixels = header.height * header.width
        quality = "" if header.quality is None else f"quality {header.quality}, "
        print(
            f"{task.name}: {header.width} x {header.height}, {len(data)} bytes ({len(payload)} payload), "
            f"{8 * len(data) / pixels:.4f} bpp, {quality}format {header.version}, model {header.model_id.hex()}"
        )
        return ""

    return _each([Task(source=None if f == files.STD else Path(f), target=None) for f in args.files], work)


def _list_models() -> None:
    """Print the model of this package and those in MLflow. Raises UserError if neither can be listed."""
    try:
        own = [(str(shipped_model()), "of this package")]
    except UserError:
        own = []
    try:
        rows = extension("models", "models in MLflow need")()
    except UserError as error:
        if not own:
            raise
        print(f"models in MLflow are left out: {error}", file=sys.stderr)
        rows = []
    listed = own + rows
    print("\n".join(f"{uri:32} {what}" for uri, what in listed) if listed else "no EGIC model is registered in MLflow")


def _models(args: argparse.Namespace) -> None:
    if not args.folders:
        _list_models()
        return
    for folder in args.folders:
        for found in model_refs.local(folder):
            orp = "codec + ORP" if (found / "orp.safetensors").is_file() else "codec"
            print(f"{found}  {orp}")


def _report(args: argparse.Namespace) -> None:
    if (args.anchors is None) != (args.images is None):
        raise UserError("--anchors (names of codecs) and --images (folder of the evaluated pictures) need each other")
    try:
        import matplotlib  # noqa: F401
        import pyarrow  # noqa: F401

        from egic.report import matched_rates
        from egic.report.page import write_report
    except ModuleNotFoundError as error:
        raise UserError(f"a report needs {error.name}; install it with pip install 'egic[train]'") from error
    if args.anchors is not None:
        names = [name.strip() for name in args.anchors.split(",") if name.strip()]
        quiet("egic.report")  # log its progress
        matched_rates.add(args.folder, matched_rates.below(args.images), names)
    print(write_report(args.folder))


def _export(args: argparse.Namespace) -> None:
    output = files.check_free_folder(args.output, args.force)
    folder = model_refs.folder_of(args.model)
    from egic.cli import export as cli_export

    print("\n".join(cli_export.run(folder, output, args.license, args.half)))


def _import_reference(args: argparse.Namespace) -> None:
    output = files.check_free_folder(args.output, args.force)
    from egic.reference import tensorflow_checkpoint

    print("\n".join(tensorflow_checkpoint.run(args.checkpoint.expanduser(), output, args.stage)))


_COMMANDS = {
    "compress": _compress,
    "decompress": _decompress,
    "info": _info,
    "models": _models,
    "demo": lambda args: cli_demo.run(args, _load),
    "report": _report,
    "export": _export,
    "import-reference": _import_reference,
}
_JOBS = ("evaluate", "compare")
"""Commands of the training pipeline, which parse the rest of the command line themselves."""

if __name__ == "__main__":
    raise SystemExit(main())
