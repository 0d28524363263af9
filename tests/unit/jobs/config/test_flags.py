"""Configurations: fields are used and documented, mistakes are one line naming the field, presets are complete."""

import ast
import dataclasses
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from egic.errors import UserError
from egic.networks.codec import CodecConfig
from egic.networks.discriminator import DiscriminatorConfig
from egic.training.crops import CropConfig
from egic.training.steps import GanLoss
from jobs.commands.one_stage import StageConfig
from jobs.config import schema as jobs_config
from jobs.config.flags import first_paragraph, parse_config, parse_preset
from jobs.config.presets import PRESETS, extended, paper, tiny
from jobs.config.schema import (
    ComputeConfig,
    Config,
    EvaluateConfig,
    GanConfig,
    MseCodecConfig,
    OrpConfig,
    SegmentationConfig,
)
from jobs.config.yaml_file import field_texts
from jobs.training.worker import sharing
from pipelines.full import Pipeline

ROOT = Path(__file__).resolve().parents[4]
SOURCES = [path for folder in ("egic", "jobs", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


def is_config(node: ast.AST) -> bool:
    """Whether a class is a dataclass that users configure."""
    others = ("Training", "Pipeline", "GanLoss")
    return isinstance(node, ast.ClassDef) and (node.name.endswith("Config") or node.name in others)


def names_read(tree: ast.AST) -> set[str]:
    """Attributes that are read outside __post_init__, where they are only checked, and names given to getattr."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            found |= {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
        found |= names_read(node)
    return found


def test_every_field_is_read_somewhere():
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    read = set().union(*(names_read(tree) for tree in trees))
    classes = [node for tree in trees for node in ast.walk(tree) if is_config(node)]
    fields = {(c.name, n.target.id) for c in classes for n in c.body if isinstance(n, ast.AnnAssign)}
    known = {c.name for c in classes}
    assert known >= {"Config", "Training", "GanConfig", "GanLoss", "ComputeConfig", "CodecConfig", "Pipeline"}
    assert len(fields) > 60
    unread = sorted(f"{name}.{field}" for name, field in fields if field not in read)
    assert not unread, unread


def test_every_field_has_a_docstring():
    """The docstring under a field is its --help text."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if is_config(node) and node.decorator_list:
                for before, after in zip(node.body, [*node.body[1:], None], strict=True):
                    plain = isinstance(before, ast.AnnAssign) and not ast.unparse(before.annotation).endswith("Config")
                    if plain and before.target.id != "loss":
                        assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                            f"{node.name}.{before.target.id} has no text"
                        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A dataclass whose field has a text of two lines."""

    given: int = 1
    """The first line,
    s3://second in the source. Default: 1."""


def test_help_texts_join_the_lines_of_the_source(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        parse_config(Example, ["--help"])
    assert "The first line, s3://second in the source. Default: 1." in capsys.readouterr().out


@pytest.mark.parametrize(
    "message, line",
    [
        (
            "╭─ Parsing error ─╮\n│ Invalid choice 'x' │\n│ for --y           │\n│ ──────── │\n│ more │\n╰──╯\n",
            "Invalid choice 'x' for --y",
        ),
        ("╭─ Value error ─╮\n│ Error parsing __tyro-dummy-inner__.Config: seed is -1 │\n╰──╯\n", "seed is -1"),
        ("no frame at all,\nas another release may have it\n", "no frame at all, as another release may have it"),
    ],
)
def test_a_message_of_the_parser_becomes_one_line(message, line):
    assert first_paragraph(message) == line


def test_every_default_has_a_reason():
    """Such as a paper's section, a measurement, or that it is a round number."""
    for kind in (Config, GanConfig, MseCodecConfig, EvaluateConfig, ComputeConfig, CodecConfig, CropConfig, GanLoss,
                 DiscriminatorConfig, Pipeline, StageConfig):  # fmt: skip
        texts = field_texts(kind)
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                assert " Default: " in " ".join(texts[field.name].split()), f"{kind.__name__}.{field.name}"


def test_configs_are_frozen_and_keyword_only():
    for name, kind in vars(jobs_config).items():
        if dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen and all(f.kw_only for f in dataclasses.fields(kind)), name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_documented(name):
    config = PRESETS[name]()
    assert isinstance(config, Config) and PRESETS[name].__doc__
    assert config.data == "" and config.seed == 0
    trained = [config.segmentation, config.mse_codec, config.gan, config.orp]
    assert all(t.checkpoint_every <= t.steps and t.log_every <= t.checkpoint_every for t in trained)
    assert 0 < config.gan.warmup_steps < config.gan.steps
    assert config.crop.small_instance_pixels == 4096 * config.crop.size**2 // 256**2  # the same share of the crop


def test_the_paper_preset_is_the_published_recipe():
    p = paper()
    assert (p.codec, p.crop.size, p.gan.loss) == (CodecConfig(), 256, GanLoss())
    assert [(s.steps, s.batch, s.lr) for s in (p.segmentation, p.mse_codec, p.gan, p.orp)] == [
        (1_000_000, 16, 1e-4), (1_000_000, 16, 1e-4), (3_000_000, 16, 1e-4), (2_000_000, 16, 1e-4),
    ]  # fmt: skip
    assert p.gan.ema == 0 and p.gan.adversarial_lr == 1e-5 and p.mse_codec.clip_norm == 10
    loss = p.gan.loss
    assert (loss.lam, loss.k_m * loss.c_d, loss.k_p, loss.beta, loss.lam_lm) == (2, 0.1 * 2**-5 * 0.75, 1, 0.15, 10)


@pytest.mark.parametrize(
    "training, expected",
    [
        (SegmentationConfig(steps=1_000_000, last_lr=1e-4), {0: 1e-4, 999_999: 1e-4}),
        (MseCodecConfig(steps=1_000_000, last_steps=100_000), {0: 1e-4, 899_999: 1e-4, 900_000: 1e-5, 999_999: 1e-5}),
        (
            GanConfig(steps=3_000_000, warmup_steps=2_000_000, last_steps=200_000, adversarial_lr=2e-5),
            {0: 1e-4, 1_799_999: 1e-4, 1_800_000: 1e-5, 1_999_999: 1e-5, 2_000_000: 2e-5, 2_999_999: 2e-5},
        ),
        (OrpConfig(steps=2_000_000, last_steps=200_000), {1_799_999: 1e-4, 1_800_000: 1e-5}),
        (OrpConfig(steps=5), {0: 1e-4, 4: 1e-4}),
    ],
)
def test_learning_rates_follow_the_recipe(training, expected):
    assert {step: training.lr_at(step) for step in expected} == expected


GAN = GanConfig(steps=10, warmup_steps=5)


@pytest.mark.parametrize(
    "base, changes, message",
    [
        (OrpConfig(steps=5), {"steps": 0}, "orp.steps is 0; give 1 or more"),
        (OrpConfig(steps=5), {"log_every": 0}, "orp.log_every is 0"),
        (OrpConfig(steps=5), {"val_samples": 0}, "orp.val_samples is 0"),
        (OrpConfig(steps=5), {"lr": 0.0}, "orp.lr and last_lr must be positive"),
        (OrpConfig(steps=5), {"last_steps": 6}, "orp.last_steps is 6, which must lie in 0..steps (5); change both"),
        (OrpConfig(steps=5), {"clip_norm": -1.0}, "orp.clip_norm is -1.0"),
        (MseCodecConfig(steps=5), {"beta": 0.0}, "mse_codec.beta is 0.0"),
        (GAN, {"warmup_steps": 11}, "gan.warmup_steps is 11, which must lie in 0..steps (10); change both"),
        (GAN, {"last_steps": 6}, "gan.last_steps is 6, which must lie in 0..warmup_steps (5); change both"),
        (GAN, {"batch": 3}, "gan.batch is 3; D and g_s need half each: give an even number"),
        (GAN, {"ema": 1.0}, "gan.ema is 1.0"),
        (EvaluateConfig(), {"alphas": (0.0, 1.5)}, "evaluate.alphas must lie in [0, 1]"),
        (EvaluateConfig(), {"alphas": ()}, "evaluate.alphas"),
        (EvaluateConfig(), {"max_pictures": 0}, "evaluate.max_pictures is 0"),
        (ComputeConfig(), {"workers": 0}, "compute.workers is 0"),
        (ComputeConfig(), {"cpus_per_worker": 0.0}, "compute.cpus_per_worker is 0.0"),
        (ComputeConfig(), {"threads": -1}, "compute.threads is -1"),
        (ComputeConfig(), {"max_failures": -1}, "compute.max_failures is -1"),
        (CodecConfig(), {"dims": (128, 192, 256)}, "dims and its depths need 4 entries"),
        (CodecConfig(), {"dims": (128, 192, 256, 330)}, "dims must be positive multiples of 32"),
        (CodecConfig(), {"hyper_depths": (5, 0)}, "every depth of hyper_dims must be at least 1"),
        (CodecConfig(), {"num_slices": 7}, "num_slices must divide the 320 latent channels"),
        (CodecConfig(), {"window": 6}, "window must be a power of two"),
    ],
)
def test_invalid_values_are_errors_that_name_the_field(base, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        replace(base, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"on_nan": "ignore"}, "on_nan is 'ignore'; give stop or rollback"),
        ({"lpips_net": "squeeze"}, "lpips_net is 'squeeze'; give alex or vgg"),
        ({"precision": "float16"}, "precision is 'float16'; give float32 or bfloat16"),
        ({"seed": -1}, "seed is -1"),
        ({"crop": CropConfig(size=100)}, "crop.size is 100; these networks need a multiple of 128"),
        ({"codec": CodecConfig()}, "discriminator.latent_channels is 64; the codec has 320"),
        ({"compute": ComputeConfig(workers=3)}, "segmentation.batch is 4; 3 workers need a multiple of 3"),
        ({"compute": ComputeConfig(workers=4)}, "gan.batch is 4; 4 workers need a multiple of 8"),
    ],
)
def test_inconsistent_values_are_errors_that_name_the_field(changes, message):
    config = tiny()
    four = {name: replace(getattr(config, name), batch=4) for name in ("segmentation", "mse_codec", "gan", "orp")}
    with pytest.raises(ValueError, match=message):
        replace(config, **(four | changes))


def test_flags_change_single_fields_of_a_preset():
    config = parse_preset(PRESETS, ["tiny", "--gan.steps", "200", "--gan.loss.lam", "3", "--compute.workers", "2"])
    expected = replace(tiny().gan, steps=200, loss=GanLoss(lam=3.0))
    assert config == replace(tiny(), gan=expected, compute=replace(tiny().compute, workers=2))


@pytest.mark.parametrize("text, smallest, largest", [("1", 1, 1), ("4", 4, 4), ("1:4", 1, 4), ("3:3", 3, 3)])
def test_workers_are_a_number_or_a_range(text, smallest, largest):
    compute = parse_preset(PRESETS, ["tiny", "--workers", text, "--gan.batch", "24", "--segmentation.batch", "12",
        "--mse-codec.batch", "12", "--orp.batch", "12"]).compute  # fmt: skip
    assert (compute.min_workers, compute.max_workers) == (smallest, largest)


@pytest.mark.parametrize("text", ["0", "4:1", "1:", ":2", "-1", "1:2:3", "many", ""])
def test_invalid_numbers_of_workers_are_refused(text):
    with pytest.raises(ValueError, match="give a number, or SMALLEST:LARGEST such as 1:4"):
        ComputeConfig(workers=text)


def test_a_range_of_workers_need_not_divide_the_batch():
    """Workers that exceed the batch stay idle."""
    config = replace(tiny(), compute=replace(tiny().compute, workers="1:3"))
    shares = {"segmentation": 8, "gan": 8}
    config = replace(config, **{name: replace(getattr(config, name), batch=8) for name in shares})
    assert [sharing(config, "segmentation", n) for n in range(1, 10)] == [1, 2, 2, 4, 4, 4, 4, 8, 8]
    assert [sharing(config, "gan", n) for n in range(1, 10)] == [1, 2, 2, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["tiny", "--gan.step", "3"], "--gan.step"),
        ([], "tiny"),
        (["tiny", "--gan.steps", "many"], "many"),
        (["tiny", "--orp.batch", "0"], "orp.batch is 0"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_preset(PRESETS, argv, prog="full.py")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and words in err, err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--from", "orp", "--until", "gan"], "--from orp comes after --until gan"),
        (["--until", "vae"], "--until vae is not a stage; choose one of segmentation, mse-codec, gan, orp, evaluate"),
    ],
)
def test_invalid_stages_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_preset({"tiny": extended(tiny, Pipeline)}, ["tiny", *argv], prog="full.py")
    assert message in capsys.readouterr().err


def test_the_pipelines_mistakes_end_with_one_line_and_status_2():
    command = [sys.executable, "-W", "ignore", str(ROOT / "pipelines" / "full.py"), "tiny", "--nope", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "--nope" in done.stderr, done.stderr


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="'tny' is not a preset; presets are tiny, small, workstation, paper"):
        parse_preset(PRESETS, ["tny", "--seed", "1"])
