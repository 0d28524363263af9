"""`egic demo`: a local page to try the codec. Command-line arguments, checks before the start, and the server."""

import argparse
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from egic.cli import model_refs
from egic.cli.extensions import extension
from egic.errors import UserError

if TYPE_CHECKING:
    from egic.model import Model

PORT = 7860
MAX_PIXELS = 2**22  # 2048 x 2048: about a minute on two cores, and 100 MB kept per page for the alpha slider


def add(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command `demo` without the model's options, which the caller adds."""
    demo = commands.add_parser("demo", help="a local page to try the codec (needs egic[demo])")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, only local)")
    demo.add_argument("--port", type=int, default=PORT, help=f"port to listen on, 0 for a free one (default: {PORT})")
    demo.add_argument("--no-open", action="store_true", help="do not open a browser")
    demo.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N",
        help=f"most pixels of a picture, with sides rounded up to 256 (default: {MAX_PIXELS})",
    )  # fmt: skip
    demo.add_argument(
        "--serve", type=int, nargs="?", const=1, metavar="N", help="code in N replicas (default: 1) on Ray Serve"
    )
    return demo


def run(args: argparse.Namespace, load: Callable[[argparse.Namespace], "Model"]) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Raises UserError for arguments that cannot be used."""
    if args.max_pixels < 1:
        raise UserError(f"--max-pixels must be at least 1, got {args.max_pixels}")
    if args.serve is not None and args.serve < 1:
        raise UserError(f"--serve must be at least 1, got {args.serve}")
    port = free_port(args.host, args.port)
    _check_installed(args.serve)
    shown = "the model of this package" if args.model is None else args.model
    if args.model is not None and not model_refs.is_uri(args.model):
        shown = Path(args.model).resolve().name
    elif args.model is not None:  # download now: _prepare_gradio sets HF_HUB_OFFLINE
        args.model = str(model_refs.folder_of(args.model))
    with tempfile.TemporaryDirectory(prefix="egic-demo-") as folder:
        _prepare_gradio(folder, args.host)
        _end_as_ctrl_c_does()
        if args.serve is None:
            _page(args, load(args), Path(folder), port, shown)
        else:
            replicas = extension("replicas", "egic demo --serve needs", "demo")
            path = model_refs.folder_of(args.model)
            with replicas(path, args.serve, args.device, args.precision, args.threads) as coder:
                _page(args, coder, Path(folder), port, shown)


def _page(args: argparse.Namespace, coder: "Model", folder: Path, port: int, shown: str) -> None:
    from egic.demo import page as demo
    from egic.demo import session

    _end_as_ctrl_c_does()  # again, since Ray replaces the handler
    uploads = session.UploadCoder(coder, args.max_pixels)
    page = demo.build(uploads, shown, folder, args.serve or 1)
    try:
        url = demo.start(page, args.host, port)
        print(f"{url} (Ctrl-C ends it)", flush=True)
        seen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if seen and sys.stdout.isatty() and not args.no_open:
            webbrowser.open(url)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        page.close(verbose=False)


def _end_as_ctrl_c_does() -> None:
    """Handle SIGTERM as Ctrl-C, so that it stops the server and Ray, and removes the page's folder."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises UserError if the program cannot listen on this host and port."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port must lie in 0..65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except (OSError, UnicodeError) as error:
        fix = "--port 0 selects a free one" if not isinstance(error, socket.gaierror) else "name another --host"
        raise UserError(f"cannot listen on {host} port {port} ({getattr(error, 'strerror', error)}); {fix}") from error


def _check_installed(serve: int | None) -> None:
    for module in ("gradio", *(() if serve is None else ("ray.serve",))):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # its parent package is missing
            found = None
        if found is None:
            raise UserError(f"egic demo needs {module}; install it with pip install 'egic[demo]'")


def _prepare_gradio(folder: str, host: str) -> None:
    """Set the variables that Gradio reads when it is imported: no telemetry, no downloads, its files below `folder`."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", GRADIO_TEMP_DIR=folder,
        NO_PROXY=",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", host))),
    )  # fmt: skip
    os.environ["no_proxy"] = os.environ["NO_PROXY"]
