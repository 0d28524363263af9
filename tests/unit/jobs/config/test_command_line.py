"""Command lines: presets, configuration files and flags give one configuration, and every mistake is one line."""

import dataclasses
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.commands import one_stage
from jobs.commands.one_stage import StageConfig
from jobs.config import command_line
from jobs.config.presets import PRESETS, extended, tiny
from jobs.config.schema import Config
from jobs.config.yaml_file import field_texts, from_yaml, to_yaml
from jobs.evaluate import AloneConfig
from pipelines.full import Pipeline

ROOT = Path(__file__).resolve().parents[4]
KINDS = (Pipeline, StageConfig, AloneConfig)


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# printed and read again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_printed_configuration_is_read_back_unchanged(tmp_path, preset, kind):
    config = extended(PRESETS[preset], kind)()
    path = written(tmp_path, text := to_yaml(config))
    assert from_yaml(path, kind) == config and to_yaml(from_yaml(path, kind)) == text


TEXTS = st.text() | st.sampled_from(
    ["1:4", "no", "null", "~", "", "1e-5", "'", '"', "# x", "a: b", "é\n", "-", "{", "[]"]
)
NUMBERS = st.floats(min_value=0, allow_nan=False, exclude_min=True)


@given(
    texts=st.fixed_dictionaries({name: TEXTS for name in ("data", "output", "experiment", "lpips_weights")}),
    init_from=st.lists(TEXTS).map(tuple),
    lr=NUMBERS, lam=st.floats(allow_nan=False), seed=st.integers(min_value=0), flip=st.booleans(),
    workers=st.sampled_from([1, 2, "1", "1:4", "2:99"]), alphas=st.lists(st.floats(0, 1), min_size=1, unique=True),
)  # fmt: skip
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_are_read_back(tmp_path, texts, init_from, lr, lam, seed, flip, workers, alphas):
    c = extended(tiny, StageConfig)()
    config = replace(
        c, **texts, init_from=init_from, seed=seed, crop=replace(c.crop, flip=flip),
        gan=replace(c.gan, lr=lr, loss=replace(c.gan.loss, lam=lam)), compute=replace(c.compute, workers=workers),
        evaluate=replace(c.evaluate, alphas=tuple(alphas)),
    )  # fmt: skip
    path = written(tmp_path, text := to_yaml(config))
    assert from_yaml(path, StageConfig) == config and to_yaml(from_yaml(path, StageConfig)) == text
    assert yaml.safe_load(text)["gan"]["lr"] == lr  # other YAML readers read the same value


def test_sections_are_in_the_order_of_the_dataclasses_with_lists_on_one_line():
    text = to_yaml(tiny())
    assert list(yaml.safe_load(text)) == [f.name for f in dataclasses.fields(Config)]
    assert "\n  dims: [32, 32, 64, 64]  # Channels of g_a's four stages" in text
    assert "\n  steps: 450  # Optimizer steps of the stage, the only clock\n" in text  # its first sentence


def test_one_file_works_for_the_pipeline_and_its_stages(tmp_path):
    path = written(tmp_path, to_yaml(extended(tiny, Pipeline)()))
    for kind in KINDS:
        assert from_yaml(path, kind) == extended(tiny, kind)()


def test_a_commands_own_fields_are_written_if_not_default():
    assert "until" not in to_yaml(extended(tiny, Pipeline)())
    assert to_yaml(replace(extended(tiny, Pipeline)(), until="gan")).endswith("\nuntil: gan  # Last stage to run\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_its_help_as_a_comment(kind):
    config = extended(tiny, kind)()
    plain = [f.name for f in dataclasses.fields(kind) if not dataclasses.is_dataclass(getattr(config, f.name))]
    assert set(plain) <= field_texts(kind).keys()


# files that users write


HAND = """
gan: {steps: 10, warmup_steps: 5, lr: 1e-3}   # 1e-3 has no dot: text to YAML 1.1
segmentation: {steps: 1_000}
mse_codec: {steps: 7, lr: 1}
orp: {steps: 7}
experiment: no
compute: {workers: 1:4, use_gpu: True}
"""


def full_command(*words: str):
    return command_line.read(Pipeline, words, prog="full.py", actions=(command_line.DRY_RUN, command_line.STATUS))


def test_values_are_converted_to_the_fields_type_and_others_have_defaults(tmp_path):
    config = from_yaml(written(tmp_path, HAND), Pipeline)
    assert (config.gan.lr, config.segmentation.steps, config.mse_codec.lr) == (1e-3, 1000, 1.0)
    assert isinstance(config.mse_codec.lr, float)
    assert (config.experiment, config.compute.workers, config.compute.use_gpu) == ("no", "1:4", True)
    assert config.codec == Config.__dataclass_fields__["codec"].default_factory() and config.until == "evaluate"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("orp: {steps: 7}", "orp: {stepz: 7}", "line 5: orp.stepz is unknown; did you mean steps?"),
        ("mse_codec:", "mse-codec:", "line 4: mse-codec is unknown; did you mean mse_codec?"),
        ("experiment:", "flux:", "line 6: flux is unknown; remove it; --help lists the fields"),
        ("orp: {steps: 7}", "", "line 2: orp is missing; add it, as --print-config has it"),
        ("warmup_steps: 5, ", "", "line 2: gan.warmup_steps is missing"),
        ("steps: 7}", "steps: many}", "line 4|5: .*steps is 'many'; give a whole number"),
        ("lr: 1e-3", "lr: fast", "line 2: gan.lr is 'fast'; give a number"),
        ("lr: 1e-3", "lr: '1e-3'", "line 2: gan.lr is '1e-3'; give a number"),
        ("lr: 1e-3", "lr: [1]", "line 2: gan.lr is a list or section; give a number"),
        ("steps: 10", "steps: 10.0", "gan.steps is '10.0'; give a whole number"),
        ("use_gpu: True", "use_gpu: yes", "compute.use_gpu is 'yes'; give true or false"),
        ("experiment: no", "experiment: ~", "experiment is '~'; give text"),
        ("workers: 1:4", "workers: [1, 4]", "compute.workers is a list or section; give a whole number or text"),
        ("experiment: no", "codec: {dims: 5}", "codec.dims is not a list; give a whole number each, in brackets"),
        ("experiment: no", "codec: {depths: [1, x, 1, 1]}", "codec.depths is 'x'; give a whole number"),
        ("orp: {steps: 7}", "orp: 7", "line 5: orp is not a section; give lines such as steps: VALUE"),
        ("orp: {steps: 7}", "orp: {steps: 7, steps: 8}", "line 5: orp.steps is given twice"),
        ("steps: 10", "steps: 3", r"line 2: gan: gan.warmup_steps is 5, which must lie in 0..steps \(3\)"),
        ("experiment: no", "seed: -1", "seed is -1; give 0 or more"),
        ("orp: {steps: 7}", "orp: {steps: 7", "invalid YAML"),
        ("experiment: no", "experiment: \x07", "invalid YAML"),
        ("experiment: no", "experiment: !!python/object:os.system x", ""),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line_with_file_key_and_fix(tmp_path, old, new, message):
    assert old in HAND
    path = written(tmp_path, HAND.replace(old, new))
    if not message:  # a tag is read as text and creates no object
        assert from_yaml(path, Pipeline).experiment == "x"
        return
    with pytest.raises(ValueError, match=message) as error:
        from_yaml(path, Pipeline)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty; print a preset"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n", "the file is not a section"),
        (b"\xff\xfe\x00x", "is not UTF-8"),
        (b"[" * 5000, "nested too deeply|invalid YAML"),
        (b"a: &a [*a]\n", "a is unknown"),
        (b"gan: 1\n---\ngan: 2\n", "invalid YAML"),
    ],
)
def test_files_without_a_configuration_are_refused(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        from_yaml(path, Config)


# the command line


def test_flags_override_a_file_and_the_file_sets_the_name(tmp_path):
    path = written(tmp_path, to_yaml(extended(tiny, Pipeline)()), "beta sweep.v2.yaml")
    for words in (["--config", str(path)], [f"--config={path}"]):
        told = command_line.read(Pipeline, [*words, "--gan.steps", "200", "--until", "gan"], prog="full.py")
        expected = replace(extended(tiny, Pipeline)(), until="gan", gan=replace(tiny().gan, steps=200))
        assert (told.name, told.config, told.action) == ("beta sweep.v2", expected, command_line.RUN)


def test_a_preset_sets_its_own_name():
    told = command_line.read(Pipeline, ["tiny", "--seed", "3", "--dry-run"], prog="x", actions=(command_line.DRY_RUN,))
    assert (told.name, told.config.seed, told.action) == ("tiny", 3, command_line.DRY_RUN)


def test_printing_ends_the_process_and_includes_the_flags(capsys):
    with pytest.raises(SystemExit) as end:
        command_line.read(Pipeline, ["tiny", "--print-config", "--gan.steps", "200"], prog="full.py")
    assert end.value.code == 0
    assert capsys.readouterr().out == to_yaml(replace(extended(tiny, Pipeline)(), gan=replace(tiny().gan, steps=200)))


@pytest.mark.parametrize(
    "words, message",
    [
        (["tiny", "--config", "FILE"], "the preset tiny and --config FILE were given; choose one"),
        (["tiny", "--config"], "--config has no file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist; print a preset with --print-config"),
        (["tiny", "--print-config", "--status"], "--print-config and --status were given; choose one"),
    ],
)
def test_contradicting_arguments_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        command_line.read(Pipeline, words, prog="full.py", actions=(command_line.STATUS,))


@pytest.mark.parametrize("words", [["--gan.steps", "x"], ["--nope"], ["--gan.warmup-steps", "999"], ["tinny"]])
def test_a_wrong_flag_after_a_file_is_one_line_and_status_2(tmp_path, words, capsys):
    path = written(tmp_path, to_yaml(extended(tiny, Pipeline)()))
    with pytest.raises(SystemExit) as end:
        command_line.read(Pipeline, ["--config", str(path), *words], prog="full.py")
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err


LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
heavy = {"ray", "mlflow", "torchvision", "lpips", "matplotlib", "torchmetrics"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("program", ["pipelines/full.py", "jobs.gan", "jobs.evaluate"])
def test_printing_imports_no_slow_package(program):
    words = [sys.executable, "-W", "ignore", "-c", LOADED, program, "tiny", "--print-config"]
    done = subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["gan"]["steps"] == tiny().gan.steps, done.stderr


def test_bash_completes_flags(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.read(Pipeline, ["--tyro-print-completion", "bash"], prog="full.py")
    assert not end.value.code
    script = written(tmp_path, capsys.readouterr().out, "completion.sh")
    ask = f"source {script}; COMP_WORDS=(full.py tiny --mse-codec.b); COMP_CWORD=2; _tyro_full_py; "
    ask += "printf '%s|' \"${COMPREPLY[@]}\""
    path = f"{Path(sys.executable).parent}:{os.defpath}"
    done = subprocess.run(["bash", "-c", ask], env={"PATH": path}, capture_output=True, text=True)
    assert done.stdout == "--mse-codec.batch|--mse-codec.beta|", done.stderr


def test_a_presets_help_names_the_other_options(capsys):
    with pytest.raises(SystemExit):
        full_command("tiny", "--help")
    text = capsys.readouterr().out
    assert all(word in text for word in ("--dry-run", "--status", "--print-config", "--orp.batch"))


def test_the_help_of_one_stage_says_that_other_sections_have_no_effect(capsys):
    with pytest.raises(SystemExit):
        one_stage.start("mse-codec", ["tiny", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "runs mse-codec alone: the flags of other stages have no effect." in text


def test_an_error_for_a_wrong_flag_names_the_help_with_the_flags(capsys):
    with pytest.raises(SystemExit):
        full_command("tiny", "--orp.bach", "3")
    assert capsys.readouterr().err.strip().endswith("(see full.py tiny --help)")
