"""A stage's key: it changes with everything that changes the result, and with nothing else."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.presets import tiny
from jobs.training import stage as stages
from jobs.training.stage import CODE, CODE_OF_FILES, EVALUATE, MODULES, code_digest, ingredients, load_stage, stage_key

ROOT = Path(__file__).resolve().parents[4]
FACTS = {"parents": {"mse-codec": "a" * 64}, "data": "d1 d2", "lpips": "alexnet"}


def key(name: str = "gan", config=None, **changes) -> str:
    return stage_key(ingredients(load_stage(name), config or tiny(), **(FACTS | changes)))


def test_the_same_things_give_the_same_short_key():
    assert key() == key() and len(key()) == 16 and int(key(), 16) >= 0
    two = {"x": "1", "y": "2"}
    assert key(parents=two) == key(parents=dict(reversed(two.items())))


def test_code_parents_data_and_lpips_count(monkeypatch):
    keys = {key(), key(parents={"mse-codec": "b" * 64}), key(data="d1 d3"), key(lpips="random"), key("orp")}
    monkeypatch.setattr(stages, "code_digest", lambda name: "other sources")
    assert len(keys) == 5 and key() not in keys


@pytest.mark.parametrize("name", MODULES)
def test_lpips_counts_where_it_is_used(name):
    used = name == "gan"
    assert (key(name) != key(name, lpips="random")) == used


def changed(config, field: str):
    return {
        "seed": lambda: replace(config, seed=1),
        "precision": lambda: replace(config, precision="bfloat16"),
        "crop": lambda: replace(config, crop=replace(config.crop, colour=0.2)),
        "codec": lambda: replace(config, codec=replace(config.codec, depths=(1, 1, 3, 1))),
        "discriminator": lambda: replace(config, discriminator=replace(config.discriminator, num_categories=5)),
        "segmentation": lambda: replace(config, segmentation=replace(config.segmentation, lr=2e-3)),
        "mse_codec": lambda: replace(config, mse_codec=replace(config.mse_codec, beta=0.5)),
        "gan": lambda: replace(config, gan=replace(config.gan, loss=replace(config.gan.loss, lam_lm=9.0))),
        "orp": lambda: replace(config, orp=replace(config.orp, steps=101)),
        "compute": lambda: replace(config, compute=replace(config.compute, workers=2, threads=2, max_failures=0)),
        "output": lambda: replace(config, output="elsewhere"),
        "experiment": lambda: replace(config, experiment="other"),
        "evaluate": lambda: replace(config, evaluate=replace(config.evaluate, max_pictures=3)),
        "data": lambda: replace(config, data="elsewhere"),  # its digest counts, not its place
    }[field]()


COUNTS = {
    "segmentation": {"seed", "precision", "crop", "discriminator", "segmentation"},
    "mse-codec": {"seed", "precision", "crop", "codec", "mse_codec"},
    "gan": {"seed", "precision", "crop", "codec", "discriminator", "gan"},
    "orp": {"seed", "precision", "crop", "codec", "orp"},
}
NEVER = {"compute", "output", "experiment", "evaluate", "data"}


@pytest.mark.parametrize("name", MODULES)
def test_a_stages_own_settings_count_and_no_others(name):
    config = tiny()
    every = set().union(*COUNTS.values()) | NEVER
    assert {f for f in every if key(name, changed(config, f)) != key(name, config)} == COUNTS[name]


def test_a_changed_source_changes_the_digest_of_the_stages_that_run_it(tmp_path, monkeypatch):
    names = {*CODE, *CODE_OF_FILES, *(m.replace(".", "/") + ".py" for m in MODULES.values())}
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())
    before = {s: code_digest(s) for s in (*MODULES, EVALUATE)}
    monkeypatch.setattr(stages, "__file__", str(tmp_path / "jobs" / "training" / "stage.py"))
    assert {s: code_digest(s) for s in before} == before  # a copy elsewhere is the same code
    for changed_file, touched in (
        ("egic/training/losses.py", {*MODULES, EVALUATE}),
        ("jobs/gan.py", {"gan"}),
        ("egic/coding/range_coder.py", {EVALUATE}),
    ):
        content = (tmp_path / changed_file).read_bytes()
        (tmp_path / changed_file).write_bytes(content + b"\n")
        assert {s for s in before if code_digest(s) != before[s]} == touched
        (tmp_path / changed_file).write_bytes(content)


def modules_of(path: Path) -> set[Path]:
    """Files of egic and jobs that `path` imports, function bodies included, but for its own command line."""
    found = set()
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        files = [ROOT / (name.replace(".", "/") + ".py") for name in names if name.startswith(("egic", "jobs"))]
        found |= {file for file in files if file.is_file()}
    return found


def closure(*starts: str) -> set[str]:
    """Every file that these import, directly or not, themselves included."""
    found, todo = set(), {ROOT / s for s in starts}
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= modules_of(path) - found
    return {path.relative_to(ROOT).as_posix() for path in found}


OUTSIDE = {
    "jobs/config/flags.py": "reads command lines",
    "egic/errors.py": "says what went wrong",
    "egic/artifact.py": "how weights are stored, not which",
    "egic/metrics/distortion.py": "measures what was learned",
    "egic/report/panels.py": "shows what was learned",
    "egic/metrics/quality.py": "measures what was learned",
    "egic/metrics/fid_kid.py": "measures what was learned",
    "jobs/training/stage.py": "the key itself",
    "jobs/storage/files.py": "where bytes lie, not which; digests are checked",
    "egic/cli/model_refs.py": "names the cache",
    "jobs/segmentation.py": "lends others a function for pictures",
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_decides_a_result_counts(name):
    own = MODULES[name].replace(".", "/") + ".py"
    missed = closure(own, "jobs/training/loop.py", "jobs/data/stream.py") - {*CODE, own, *OUTSIDE}
    assert not missed, f"add to jobs.stage.CODE, or say here why not: {sorted(missed)}"


def test_every_module_that_makes_a_file_counts():
    missed = closure("egic/model.py") - {*CODE, *CODE_OF_FILES, *OUTSIDE}
    assert not missed, f"add to jobs.stage.CODE_OF_FILES, or say here why not: {sorted(missed)}"
    assert {"egic/metrics/distortion.py", "jobs/evaluate.py"} <= set(CODE_OF_FILES)


@pytest.mark.parametrize("name", MODULES)
def test_stages_declare_what_there_is(name):
    stage, config = load_stage(name), tiny()
    assert stage.name == name and set(stage.parents) <= MODULES.keys()
    assert all(hasattr(config, field) for field in stage.reads)
    given = {part for parent in stage.parents for part in load_stage(parent).publishes}
    assert set(stage.takes) <= given
    assert stage.headline.startswith("val/")
