"""`egic demo` checks its arguments before it loads a model or starts the page, and reports mistakes in one line."""

import os
import socket

import pytest

from egic.cli import demo, main, model_refs
from egic.errors import UserError


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def refused(capsys, *arguments) -> str:
    """The error line of `egic demo`, which must end with status 2."""
    try:
        status = main.main(["demo", "-m", "nowhere", *arguments])
    except SystemExit as end:  # argparse
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_a_used_port_is_an_error_that_suggests_port_0(taken, capsys):
    said = refused(capsys, "--port", taken)
    assert taken in said and "in use" in said and "--port 0" in said


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--port", "65536"], "0..65535"),
        (["--port", "-1"], "0..65535"),
        (["--port", "http"], "--port"),
        (["--port", "0", "--host", "no.such.host.invalid"], "--host"),
        (["--max-pixels", "0"], "--max-pixels"),
        (["--serve", "0"], "--serve"),
    ],
)
def test_invalid_options_are_refused(arguments, word, capsys):
    assert word in refused(capsys, *arguments)


@pytest.mark.parametrize("missing, arguments", [("gradio", []), ("ray.serve", ["--serve"])])
def test_a_missing_extra_is_one_line_with_the_install_command(missing, arguments, capsys, monkeypatch):
    def found(name):
        if name == missing:
            raise ModuleNotFoundError(name)
        return object()

    monkeypatch.setattr(demo.importlib.util, "find_spec", found)
    assert f"{missing}; install it with pip install 'egic[demo]'" in refused(capsys, "--port", "0", *arguments)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(demo.signal, "signal", lambda *args: None)
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "GRADIO_TEMP_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "kept.example")
    yield


def test_a_missing_model_is_one_line(capsys, installed):
    assert "nowhere" in refused(capsys, "--port", "0")


def test_gradios_telemetry_is_off_before_it_is_imported(installed, monkeypatch):
    """Checks the environment at the time when the model is loaded, which is before Gradio is imported."""

    def load(args):
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert os.environ["NO_PROXY"].split(",") == ["kept.example", "127.0.0.1", "localhost", "127.0.0.1"]
        assert os.path.isdir(os.environ["GRADIO_TEMP_DIR"])
        raise UserError("far enough")

    args = main.parser().parse_args(["demo", "-m", "nowhere", "--port", "0"])
    with pytest.raises(ValueError, match="far enough"):
        demo.run(args, load)
    assert not os.path.isdir(os.environ["GRADIO_TEMP_DIR"])


def test_it_listens_on_loopback_only_and_port_0_selects_a_free_port():
    args = main.parser().parse_args(["demo", "-m", "x"])
    assert args.host == "127.0.0.1" and args.serve is None
    port = demo.free_port(args.host, 0)
    with socket.create_server((args.host, port)):
        pass


def test_serve_passes_the_models_folder_and_the_options_to_the_replicas(installed, monkeypatch):
    asked = []
    monkeypatch.setattr(model_refs, "folder_of", lambda ref: f"folder of {ref}")

    def replicas(*arguments):
        asked.append(arguments)
        raise UserError("far enough")

    monkeypatch.setattr(demo, "extension", lambda name, *_: {"replicas": replicas}[name])
    line = ["demo", "-m", "x", "--port", "0", "--serve", "2", "--device", "cuda", "--threads", "3"]
    with pytest.raises(ValueError, match="far enough"):
        demo.run(main.parser().parse_args(line), lambda args: pytest.fail("loaded here"))
    assert asked == [("folder of x", 2, "cuda", "float32", 3)]
