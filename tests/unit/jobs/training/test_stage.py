"""A stage's key: it depends on everything that affects the result, and on nothing else."""

from dataclasses import replace

import pytest

from jobs.config.presets import tiny
from jobs.training import stage as stages
from jobs.training.stage import EVALUATE, MODULES, STAGES, groups, ingredients, load_stage, stage_key

FACTS = {"parents": {"mse-codec": "a" * 64}, "data": "d1 d2", "lpips": "alexnet"}


def key(name: str = "gan", config=None, **changes) -> str:
    return stage_key(ingredients(load_stage(name), config or tiny(), **(FACTS | changes)))


def test_every_stage_is_listed_after_its_parents():
    names = list(MODULES)
    assert all(names.index(p) < names.index(name) for name in names for p in load_stage(name).parents)


def test_equal_inputs_have_the_same_short_key():
    assert key() == key() and len(key()) == 16 and int(key(), 16) >= 0
    two = {"x": "1", "y": "2"}
    assert key(parents=two) == key(parents=dict(reversed(two.items())))


def test_the_key_depends_on_code_parents_data_and_lpips(monkeypatch):
    keys = {key(), key(parents={"mse-codec": "b" * 64}), key(data="d1 d3"), key(lpips="random"), key("orp")}
    monkeypatch.setattr(stages, "code_digest", lambda files: "other sources")
    assert len(keys) == 5 and key() not in keys


@pytest.mark.parametrize("name", MODULES)
def test_the_key_depends_on_lpips_only_where_it_is_used(name):
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
        "data": lambda: replace(config, data="elsewhere"),  # its digest counts, not its path
    }[field]()


COUNTS = {
    "segmentation": {"seed", "precision", "crop", "discriminator", "segmentation"},
    "mse-codec": {"seed", "precision", "crop", "codec", "mse_codec"},
    "gan": {"seed", "precision", "crop", "codec", "discriminator", "gan"},
    "orp": {"seed", "precision", "crop", "codec", "orp"},
}
NEVER = {"compute", "output", "experiment", "evaluate", "data"}


@pytest.mark.parametrize("name", MODULES)
def test_the_key_depends_on_the_stages_own_settings_only(name):
    config = tiny()
    every = set().union(*COUNTS.values()) | NEVER
    assert {f for f in every if key(name, changed(config, f)) != key(name, config)} == COUNTS[name]


@pytest.mark.parametrize("name", MODULES)
def test_stages_declare_existing_settings_and_networks(name):
    stage, config = load_stage(name), tiny()
    assert stage.name == name and set(stage.parents) <= MODULES.keys()
    assert all(hasattr(config, field) for field in stage.reads)
    given = {part for parent in stage.parents for part in load_stage(parent).publishes}
    assert set(stage.takes) <= given
    assert stage.headline.startswith("val/")


def test_a_stage_comes_after_its_parents():
    assert groups() == [("segmentation", "mse-codec"), ("gan",), ("orp",), (EVALUATE,)]
    assert groups("gan") == [("segmentation", "mse-codec"), ("gan",)]
    assert groups("mse-codec") == [("mse-codec",)]


def test_a_new_parent_changes_the_order(monkeypatch):
    """The order follows from `parents`: if the MSE codec is a child of segmentation, the two do not run in parallel."""
    codec = replace(load_stage("mse-codec"), parents=("segmentation",))
    own = load_stage
    monkeypatch.setattr(stages, "load_stage", lambda name: codec if name == "mse-codec" else own(name))
    assert groups("mse-codec") == [("segmentation",), ("mse-codec",)]
    assert sorted(name for group in groups() for name in group) == sorted(STAGES)
