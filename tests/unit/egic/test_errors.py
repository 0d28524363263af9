"""A user's mistake is one line and status 2; a bug keeps its traceback."""

import pytest

from egic.errors import run_main


@pytest.mark.parametrize("error", [ValueError("size is 0;\n give 1"), FileNotFoundError(2, "No such file", "a/b")])
def test_user_mistakes_give_one_line_and_status_2(error, capsys):
    def fail():
        raise error

    assert run_main(fail) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_success_and_status_are_passed_on():
    assert run_main(lambda: "done") is None
    assert run_main(lambda: 3) == 3


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)
