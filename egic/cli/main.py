"""egic compress | decompress | info | demo | models | evaluate | report | compare | export | import-reference.

Uses argparse and imports torch only to code pictures, so that `egic --help` and `egic info` start in under a second.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from egic import __version__
from egic.cli import coding, files, model_refs
from egic.cli import demo as cli_demo
from egic.cli.extensions import extension
from egic.cli.files import Task
from egic.coding import bitstream
from egic.coding.bitstream import MAX_QUALITY
from egic.errors import UserError, quiet, run_main
from egic.file_size import bpp, is_unit
from egic.shipped import shipped_model

_REF = "artifact folder, a file in one, models:/egic-orp@best (MLflow), or hf://owner/name[@revision] (Hugging Face)"


_PATHS = ("IN", "OUT", "FILE", "FOLDER", "REF", "MODEL", "CHECKPOINT")
"""Placeholders of values that are paths."""


class _Parser(argparse.ArgumentParser):
    path_completion: dict[str, str] | None = None
    """How shells complete paths, for shtab."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        if action.metavar in _PATHS:
            action.complete = self.path_completion  # type: ignore[attr-defined]
        return action

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _PrintCompletion(argparse.Action):
    def __call__(self, parser_: argparse.ArgumentParser, _namespace: Any, shell: Any, _option: Any = None) -> NoReturn:
        import shtab

        _Parser.path_completion = shtab.FILE  # type: ignore[assignment]
        print(shtab.complete(parser(_options_of), shell))
        parser_.exit()


def _options_of(name: str) -> Sequence[str]:
    """Options of a command of the pipeline; none if the pipeline is not installed."""
    try:
        return extension(f"{name}_options", f"egic {name} needs")()
    except UserError:
        return ()


def parser(options_of: Callable[[str], Sequence[str]] = lambda name: ()) -> argparse.ArgumentParser:
    """The parser of all commands. options_of: options of a command of the pipeline, which parses them itself; they are
    needed only for completion."""
    top = _Parser(prog="egic", description="EGIC, a generative image codec.")
    top.add_argument("--version", action="version", version=f"egic {__version__}")
    top.add_argument(
        "--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"),
        help="print the completion script of a shell: source <(egic --print-completion bash)",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_coding(commands)
    _add_reports(commands)
    for name, what in _JOBS.items():
        command = commands.add_parser(name, help=f"{what} (needs egic[train])")
        for option in options_of(name):
            command.add_argument(option, metavar="FILE")  # what shells complete where they know no better
    _add_models(commands)
    return top


def _add_coding(commands: Any) -> None:
    """compress, decompress, demo, info."""
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


def _add_reports(commands: Any) -> None:
    """report; evaluate and compare are commands of the pipeline."""
    report = commands.add_parser("report", help="write the report of an evaluation, optionally with other codecs")
    report.add_argument("folder", metavar="FOLDER", type=Path, help="folder that egic evaluate wrote")
    report.add_argument(
        "--anchors",
        metavar="CODECS",
        help="other codecs at the sizes of the model's files: jpeg,webp,avif,jxl,bpg,vtm, and compressai's learned "
        "bmshj2018-hyperprior,mbt2018-mean,cheng2020-attn (downloaded, or files in EGIC_WEIGHTS)",
    )
    report.add_argument(
        "--images", metavar="FOLDER", type=Path, nargs="+", help="the --images of the evaluation, for --anchors"
    )


def _add_models(commands: Any) -> None:
    """models, export, import-reference."""
    models = commands.add_parser(
        "models", help="the model of this package and those in MLflow's registry, or models in folders"
    )
    models.add_argument("folders", nargs="*", metavar="FOLDER", type=Path, help="list models in these folders instead")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 if any input failed. See `run_main` for others."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in _JOBS:  # commands of the pipeline, which parse their own options
        name, rest = argv[0], argv[1:]
        return run_main(lambda: extension(name, f"egic {name} needs")(rest)) or 0
    for option, size, word in zip(argv, argv[1:], argv[2:], strict=False):
        if option == "--max-bytes" and is_unit(word) and not Path(word).exists():
            parser().error(f"--max-bytes {size} {word} has a space; write --max-bytes {size}{word}")
    args = parser().parse_args(argv)
    return run_main(lambda: _COMMANDS[args.command](args)) or 0


def _info(args: argparse.Namespace) -> int:
    def work(task: Task, _: coding.Result) -> None:
        data = files.read(task)
        header, payload = bitstream.unpack(data)
        quality = "" if header.quality is None else f"quality {header.quality}, "
        rate = bpp(len(data), header.height, header.width)
        print(
            f"{task.name}: {header.width} x {header.height}, {len(data)} bytes ({len(payload)} payload), "
            f"{rate:.4f} bpp, {quality}format {header.version}, model {header.model_id.hex()}"
        )

    tasks = [Task(source=None if f == files.STD else Path(f), target=None) for f in args.files]
    return coding.report(tasks, (coding.attempt(work, task) for task in tasks))


def _list_models() -> None:
    """Print the model of this package and those in MLflow. Raises UserError if neither can be listed."""
    try:
        own = [(str(folder := shipped_model()), f"of this package, {_described(folder)}")]
    except UserError:
        own = []
    try:
        rows = extension("models", "models that you have trained need")()
    except UserError as error:
        if not own:
            raise
        print(f"only the model of this package: {error}", file=sys.stderr)
        rows = []
    listed = own + rows
    print("\n".join(f"{uri:32} {what}" for uri, what in listed) if listed else "no EGIC model is registered in MLflow")


def _models(args: argparse.Namespace) -> None:
    if not args.folders:
        _list_models()
        return
    for folder in args.folders:
        found_models = model_refs.local(folder)
        if not found_models:
            raise UserError(f"no EGIC model in or below {folder}")
        for found in found_models:
            print(f"{found}  {_described(found)}")


def _described(folder: Path) -> str:
    """The networks of the model in a folder, and its identity, which the files that it makes carry."""
    from egic.model import load  # imports torch

    try:
        model = load(folder)
    except UserError as error:
        return f"cannot be loaded: {error}"
    return f"{'codec + ORP' if model.orp else 'codec'}, model identity {model.identity.hex()}"


def _report(args: argparse.Namespace) -> None:
    if (args.anchors is None) != (args.images is None):
        raise UserError("--anchors (names of codecs) and --images (of the evaluation) need each other")
    try:
        import bjontegaard  # noqa: F401
        import jinja2  # noqa: F401
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
    "compress": coding.compress,
    "decompress": coding.decompress,
    "info": _info,
    "models": _models,
    "demo": lambda args: cli_demo.run(args, coding.load),
    "report": _report,
    "export": _export,
    "import-reference": _import_reference,
}
_JOBS = {
    "evaluate": "measure models on folders of pictures, with real files",
    "compare": "one report of all evaluations in MLflow",
}
"""Commands of the training pipeline, which parse the rest of the command line themselves, with their help."""

if __name__ == "__main__":
    raise SystemExit(main())
