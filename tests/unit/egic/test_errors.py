"""A user's mistake ends with one line and status 2, a fault of the program with a traceback and status 1."""

import os
import pickle
import subprocess
import sys

import pytest

from egic.coding.bitstream import BitstreamError
from egic.errors import UserError, reason, run_main
from egic.networks.codec import CodecConfig


def failing(error):
    def fail():
        raise error

    return fail


MISTAKES = [
    UserError("size is 0;\n give 1"),
    BitstreamError("damaged .egic file"),
    FileNotFoundError(2, "No such file", "a/b"),
]


@pytest.mark.parametrize("error", MISTAKES, ids=repr)
def test_user_mistakes_give_one_line_and_status_2(error, capsys):
    assert run_main(failing(error)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_an_environment_variable_shows_the_traceback_of_a_mistake(capsys, monkeypatch):
    monkeypatch.setenv("EGIC_TRACEBACK", "1")
    assert run_main(failing(UserError("size is 0; give 1"))) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1] == "error: size is 0; give 1"
    assert reason(UserError("damaged")) == "damaged"  # of one file of many
    assert "UserError: damaged" in capsys.readouterr().err


def test_the_status_of_main_is_returned():
    assert run_main(lambda: "done") is None
    assert run_main(lambda: 3) == 3


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), ValueError("invalid literal"), KeyError("x")])
def test_a_fault_of_the_program_is_a_traceback_and_asks_for_a_report(error, capsys):
    assert run_main(failing(error)) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and repr(error).split("(")[0] in err and "report" in err.splitlines()[-1]


def test_an_invalid_configuration_is_a_users_mistake():
    with pytest.raises(UserError, match="num_slices"):
        CodecConfig(num_slices=7)


def test_a_user_error_can_be_pickled():
    again = pickle.loads(pickle.dumps(UserError("size is 0; give 1")))
    assert type(again) is UserError and str(again) == "size is 0; give 1"


WARNS = """
import subprocess, sys, warnings
if sys.argv[1] == "parent":
    from egic.errors import quiet
    quiet()
    subprocess.run([sys.executable, *sys.orig_argv[1:-1], "child"], check=True)
warnings.warn("`torch.jit.script` is deprecated. Please switch.", FutureWarning)
warnings.warn("alpha is deprecated", FutureWarning)
"""


def test_a_known_warning_of_a_package_is_hidden_and_others_are_shown():
    env = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, "-c", WARNS, "parent"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.count("alpha is deprecated") == 2 and "torch" not in done.stderr


CLOSED = """
import sys
from egic.errors import run_main
def main():
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
    return 3 + sys.stdout.isatty() + sys.stderr.isatty()
raise SystemExit(run_main(main))
"""


@pytest.mark.parametrize("closed, shown", [(">&-", "err\n"), ("2>&-", "out\n"), (">&- 2>&-", "")])
def test_a_closed_output_is_no_error(closed, shown):
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, CLOSED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (3, shown)


def test_control_characters_in_messages_are_shown_as_text(capsys):
    assert run_main(failing(UserError("a\x1b[31m\nb.png is damaged"))) == 2
    assert capsys.readouterr().err == "error: a\\x1b[31m b.png is damaged\n"
    assert reason(UserError("\x07bell")) == "\\x07bell"
