"""Order and augmentation as functions of (seed, epoch, sample), without Ray."""

from dataclasses import replace

import numpy as np
import pytest

from egic.training.crops import CropConfig
from jobs.data import stream
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import Manifest, load_manifest
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes
from jobs.data.stream import TrainingSequence, local_stream, permutation, validation_batches

CROP = CropConfig(size=32, longer_side=80, small_instance_pixels=64)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("data")
    write_scenes(root / "coco", SceneConfig(num_train=10, num_val=1, min_side=64, max_side=96))
    config = PrepareConfig(split="train", samples_per_shard=4)
    return load_manifest(prepare((root / "coco",), str(root / "out"), config)["train"])


def sequence(manifest: Manifest, **changes) -> TrainingSequence:
    settings = {"seed": 3, "global_batch": 4, "first_step": 0, "last_step": 12}
    return TrainingSequence(manifest=manifest, crop=CROP, **(settings | changes))


def joined(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() == {"x", "label", "weight", "sample", "position"}
    for name in one:
        assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]), name


def test_batches_have_the_declared_shapes_and_types(manifest):
    batches = list(local_stream(sequence(manifest)))
    assert len(batches) == 12
    for step, batch in enumerate(batches):
        assert batch["x"].shape == (4, 32, 32, 3) and batch["label"].shape == batch["weight"].shape == (4, 32, 32)
        assert {batch[name].dtype for name in ("x", "label", "weight")} == {np.dtype(np.uint8)}
        assert batch["position"].tolist() == list(range(4 * step, 4 * step + 4))
    assert set(np.unique(joined(batches)["weight"])) == {1, 3}


def test_every_epoch_has_every_sample_once_with_another_order_and_crop(manifest):
    crops = joined(local_stream(sequence(manifest, last_step=5)))  # two epochs of ten
    first, second = crops["sample"][:10], crops["sample"][10:]
    assert sorted(first) == sorted(second) == list(range(10)) and first.tolist() != second.tolist()
    a, b = (crops["x"][int(np.flatnonzero(crops["sample"][e : e + 10] == 0)[0]) + e] for e in (0, 10))
    assert not np.array_equal(a, b)


def test_resuming_at_a_step_equals_the_rest_of_the_stream(manifest):
    whole, tail = (joined(local_stream(sequence(manifest, first_step=k))) for k in (0, 5))
    assert_equal({name: array[20:] for name, array in whole.items()}, tail)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_batches_together_equal_the_batch_of_one_rank(manifest, world_size):
    whole = list(local_stream(sequence(manifest)))
    ranks = [list(local_stream(sequence(manifest, rank=r, world_size=world_size))) for r in range(world_size)]
    for step, batch in enumerate(whole):
        union = joined(rank[step] for rank in ranks)
        order = np.argsort(union["position"])
        assert_equal({name: array[order] for name, array in union.items()}, batch)


def test_seed_changes_order_and_crops(manifest):
    one, other = (joined(local_stream(sequence(manifest, seed=seed))) for seed in (3, 4))
    assert one["sample"].tolist() != other["sample"].tolist() and not np.array_equal(one["x"], other["x"])


def test_a_crop_does_not_depend_on_the_task_size(manifest):
    """The same positions, read with other task sizes."""
    odd = sequence(manifest, global_batch=3, last_step=16)
    assert odd.crops_per_block != sequence(manifest).crops_per_block
    assert_equal(joined(local_stream(odd)), joined(local_stream(sequence(manifest))))


def test_the_order_never_changes():
    """A change of the order changes the data of resumed runs, so the code version of every stage must change, too."""
    assert permutation(0, 0, 8).tolist() == [4, 6, 3, 1, 2, 7, 0, 5]


def test_positions_may_exceed_32_bits(manifest):
    far = sequence(manifest, first_step=2**33, last_step=2**33 + 1)
    (batch,) = local_stream(far)
    assert batch["position"].tolist() == [2**35 + i for i in range(4)]


def test_validation_is_the_same_every_time_and_split_among_ranks(manifest):
    whole = joined(validation_batches(manifest, CROP, 7, 3))
    assert whole["sample"].tolist() == list(range(7))
    ranks = [joined(validation_batches(manifest, CROP, 7, 3, rank=r, world_size=2)) for r in range(2)]
    union = {name: np.concatenate([rank[name] for rank in ranks]) for name in whole}
    order = np.argsort(union["sample"])
    assert_equal({name: array[order] for name, array in union.items()}, whole)
    assert sum(len(batch["x"]) for batch in validation_batches(manifest, CROP, 99, 4)) == 10


def test_every_rank_has_validation_samples_when_there_are_fewer_than_ranks(manifest):
    for rank in range(3):
        found = joined(validation_batches(manifest, CROP, 2, 3, rank=rank, world_size=3))
        assert found["sample"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 3, "world_size": 2}, "batch is 3 for 2 workers"),
        ({"global_batch": 0}, "batch is 0"),
        ({"first_step": 13}, "steps 13..12"),
        ({"rank": 1}, "rank 1 is not below"),
    ],
)
def test_invalid_settings_are_refused(manifest, changes, message):
    with pytest.raises(ValueError, match=message):
        sequence(manifest, **changes)


def test_errors_name_a_damaged_picture(manifest, tmp_path, monkeypatch):
    samples = list(stream.read_samples(manifest, range(10)))
    broken = replace(samples[0], jpeg=samples[0].jpeg[:300])
    monkeypatch.setattr(stream, "read_samples", lambda _, indices: [broken for _ in indices])
    with pytest.raises(ValueError, match=r"shard-0000\d.parquet, sample \d \(0+\d+.jpg\): .*JPEG"):
        list(local_stream(sequence(manifest)))
