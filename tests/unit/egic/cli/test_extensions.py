"""Extensions of the command line: declared functions can be loaded, and missing packages are one line."""

import pytest

from egic.cli import extensions, main
from egic.errors import UserError


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A checkout whose pyproject.toml declares what a test writes."""

    def declare(**values):
        lines = [f'[project.entry-points."{extensions.GROUP}"]', *(f'{name} = "{v}"' for name, v in values.items())]
        (tmp_path / "pyproject.toml").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(extensions, "CHECKOUT", tmp_path)

    return declare


def test_every_declared_extension_can_be_loaded():
    found = extensions.registered()
    assert {"evaluate", "compare", "models", "fetch", "replicas"} <= found.keys()
    assert all(callable(entry.load()) for entry in found.values())


def test_a_command_calls_its_registered_function(checkout, monkeypatch, tmp_path, capsys):
    (tmp_path / "extension_of_a_test.py").write_text("def command(argv):\n    print('given', argv)\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkout(compare="extension_of_a_test:command")
    assert main.main(["compare", "--x", "1"]) == 3
    assert capsys.readouterr().out == "given ['--x', '1']\n"


def test_without_the_pipeline_a_command_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(extensions, "CHECKOUT", tmp_path)
    monkeypatch.setattr(extensions, "entry_points", lambda group: ())
    assert main.main(["evaluate", "--model", "x"]) == 2
    line = "error: egic evaluate needs the training pipeline, which is not installed: pip install 'egic[train]'"
    assert capsys.readouterr().err.strip() == line


def test_a_package_that_is_missing_is_named_with_its_extra(checkout):
    checkout(replicas="absent_package.serve:run")
    with pytest.raises(UserError, match=r"demo --serve needs the package absent_package.*pip install 'egic\[demo\]'"):
        extensions.extension("replicas", "egic demo --serve needs", "demo")


def test_an_error_in_an_extension_is_not_a_user_error(checkout):
    checkout(evaluate="jobs.evaluate:nothing_of_this_name")
    with pytest.raises(AttributeError):
        extensions.extension("evaluate", "egic evaluate needs")
