"""The number of categories comes from the data; data without labels is refused before anything starts."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from egic import artifact
from egic.errors import UserError
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator
from jobs.commands import dry_run, one_stage
from jobs.config.presets import extended, tiny
from jobs.training.num_categories import check_parent, expected, fitted, learning_labels, open_fitted, with_categories
from pipelines.full import STAGES, Pipeline
from tests.own_data import write_label_maps, write_photographs


def data(pixels: tuple[int, ...] = (9, 5, 0, 7)) -> dict:
    manifest = SimpleNamespace(folder="the data", num_classes=len(pixels) - 1, class_pixels=pixels)
    return {"train": manifest, "val": manifest}


def test_the_number_comes_from_the_data_and_another_is_refused():
    assert tiny().discriminator.num_categories == 0
    assert fitted(tiny(), data(), STAGES) == with_categories(tiny(), 3)
    assert fitted(with_categories(tiny(), 3), data(), STAGES) == with_categories(tiny(), 3)
    with pytest.raises(
        ValueError, match="the data has 3 categories, discriminator.num_categories is 133; give 3, or 0"
    ):
        fitted(with_categories(tiny(), 133), data(), STAGES)


@pytest.mark.parametrize("pixels", [(9,), (9, 0, 0)])
def test_stages_that_need_labels_refuse_data_without_them(pixels):
    assert learning_labels(STAGES) == ["segmentation", "gan"]
    for stages in (("mse-codec",), ("orp",), ("evaluate",)):
        assert fitted(tiny(), data(pixels), stages) == tiny()
    with pytest.raises(ValueError, match="segmentation and gan learn from labels, and the data has none; give a COCO"):
        fitted(tiny(), data(pixels), STAGES)
    with pytest.raises(ValueError, match="gan learns from labels"):
        fitted(tiny(), data(pixels), ("gan",))


@pytest.mark.parametrize(
    "until, wanted",
    [
        ("segmentation", ("segmentation",)),
        ("mse-codec", ("mse-codec",)),
        ("gan", STAGES[:3]),
        ("orp", STAGES[:4]),
        ("evaluate", STAGES),
    ],
)
def test_a_pipeline_runs_the_stages_that_its_last_stage_depends_on(until, wanted):
    assert replace(extended(tiny, Pipeline)(), until=until).wanted == wanted


def test_photographs_are_refused_before_they_are_prepared(tmp_path):
    root = write_photographs(tmp_path / "mine", 4)
    config = replace(tiny(), data=str(root), output=str(tmp_path / "out"))
    for look in (lambda stages: open_fitted(config, stages), lambda stages: dry_run.text(config, stages)):
        with pytest.raises(ValueError, match="segmentation and gan learn from labels, .*mine has none"):
            look(STAGES)
    assert not (tmp_path / "out").exists()
    assert open_fitted(config, ("mse-codec",))[1]["train"].num_samples == 3


def test_the_number_is_known_before_data_is_prepared(tmp_path):
    assert expected(tiny(), {}, STAGES) == with_categories(tiny(), 133)  # scenes
    config = replace(tiny(), data=str(write_label_maps(tmp_path / "own")), output=str(tmp_path / "out"))
    assert expected(config, {}, STAGES) == with_categories(config, 5)
    assert dry_run.data_line(config).endswith("own, label maps, to be prepared: 4 pictures in train, 2 pictures in val")
    mixed = replace(config, data=f"{write_photographs(tmp_path / 'mine', 4)},{config.data}")  # one has labels
    assert expected(mixed, {}, STAGES) == with_categories(mixed, 5)
    assert dry_run.data_line(mixed).endswith(
        "own, photographs and label maps, to be prepared: 7 pictures in train, 3 pictures in val"
    )
    assert open_fitted(mixed, ("segmentation",))[0] == with_categories(mixed, 5)
    with pytest.raises(ValueError, match="segmentation learns from labels, .*mine,.* has none"):
        expected(replace(mixed, data=f"{tmp_path / 'mine'},{tmp_path / 'mine/holidays'}"), {}, ("segmentation",))
    with pytest.raises(ValueError, match="several places must be local folders"):
        replace(mixed, data=f"{tmp_path / 'mine'},s3://bucket/folder")


def test_a_discriminator_with_other_labels_is_refused_as_parent(tmp_path):
    config = with_categories(tiny(), 5)
    artifact.save(tmp_path, {"discriminator": Discriminator(with_categories(tiny(), 7).discriminator)}, {})
    with pytest.raises(ValueError, match="the discriminator of parent has 7 categories, the data has 5; start from"):
        check_parent(config, "gan", "parent", tmp_path)
    check_parent(config, "orp", "parent", tmp_path)  # needs none
    check_parent(with_categories(tiny(), 7), "gan", "parent", tmp_path)


def test_a_single_stage_without_labels_ends_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    root = write_photographs(tmp_path / "mine", 4)
    with pytest.raises(SystemExit) as stop:
        one_stage.main("segmentation", ["tiny", "--data", str(root), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: segmentation learns from labels, and {root} has none; give a COCO tree (panoptic, instances or "
        "stuff), or label maps with a class table (classes.yaml). mse-codec and orp need no labels\n"
    )


def test_a_codec_of_another_configuration_is_refused_as_parent(tmp_path):
    artifact.save(tmp_path, {"codec": Codec(tiny().codec)}, {})
    other = replace(tiny(), codec=replace(tiny().codec, rates=6))
    check_parent(tiny(), "gan", "parent", tmp_path)
    check_parent(other, "segmentation", "parent", tmp_path)  # it has no codec
    for stage in ("mse-codec", "gan", "orp"):
        with pytest.raises(UserError, match="the codec of parent has codec.rates 0, this configuration 6"):
            check_parent(other, stage, "parent", tmp_path)
