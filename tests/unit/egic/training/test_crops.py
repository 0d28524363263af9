"""Crops: geometry, alignment of labels and picture, weights, unusual JPEGs."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from egic.training.crops import (
    CropConfig,
    Plan,
    Sample,
    apply_plan,
    decode_jpeg,
    decode_panoptic_png,
    plan_center_crop,
    plan_training_crop,
)


def encode(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 90 * np.sin(x / 23), 127 + 90 * np.cos(y / 31), (x + y) % 256 * 0 + 80], -1).astype(np.uint8)


def sample_of(picture: np.ndarray, segments: np.ndarray | None = None, classes=(0, 7), things=(0, 1)) -> Sample:
    if segments is None:
        segments = np.ones(picture.shape[:2], np.uint8)
    return Sample(
        jpeg=encode(picture, quality=95, subsampling=0),
        segments=segments,
        segment_class=np.array(classes, np.uint8),
        segment_thing=np.array(things, np.uint8),
    )


def test_crop_equals_resizing_the_whole_picture_first():
    sample = sample_of(smooth_picture(213, 320))
    crop = CropConfig(size=64, longer_side=320)
    plan = Plan(height=192, width=288, top=37, left=101)
    x, label, weight = apply_plan(sample, plan, crop)
    whole = Image.fromarray(decode_jpeg(sample.jpeg)).resize((288, 192), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[37 : 37 + 64, 101 : 101 + 64]
    assert np.abs(x.astype(int) - expected).max() <= 1  # PIL rounds its filter weights per window
    assert x.dtype == label.dtype == weight.dtype == np.uint8
    assert (label == 7).all()


def test_decoding_at_half_scale_is_close_to_the_full_decode():
    sample = sample_of(smooth_picture(480, 640))
    crop = CropConfig(size=128, longer_side=640)
    x, _, _ = apply_plan(sample, Plan(height=240, width=320, top=50, left=60), crop)  # factor 1/2: the decoder halves
    whole = Image.fromarray(decode_jpeg(sample.jpeg)).resize((320, 240), Image.Resampling.BOX)
    assert np.abs(x.astype(int) - np.asarray(whole)[50:178, 60:188]).mean() < 1.0


def test_label_and_picture_stay_aligned_under_every_plan():
    """The picture shows its label as colours: after any augmentation both agree, except at edges."""
    segments = np.zeros((200, 300), np.uint8)
    segments[60:140, 90:210] = 1
    picture = np.where(segments[..., None] == 1, 230, 30).astype(np.uint8).repeat(3, axis=2)
    sample, crop = sample_of(picture, segments), CropConfig(size=96, longer_side=160, colour=0.0)
    for seed in range(30):
        plan = plan_training_crop(200, 300, crop, np.random.default_rng(seed))
        x, label, _ = apply_plan(sample, plan, crop)
        padded = (x == 128).all(-1)
        assert (((x[..., 0] > 128) == (label == 7)) | padded).mean() > 0.97
        assert not padded.any() or (label[padded] == 0).mean() > 0.97


def test_small_picture_is_padded_with_grey_and_void():
    crop = CropConfig(size=64, longer_side=32, min_scale=1, max_scale=1, colour=0.0)
    sample = sample_of(np.full((16, 32, 3), 255, np.uint8))
    plan = plan_training_crop(16, 32, crop, np.random.default_rng(0))
    x, label, weight = apply_plan(sample, plan, crop)
    assert (label[24:40, 16:48] == 7).all()  # centred
    assert (label == 7).sum() == 16 * 32 and (x[label == 0] == 128).all() and (x[label == 7] > 250).all()
    assert (weight[label == 0] == 1).all()


@pytest.mark.parametrize(
    ("pixels_wide", "thing", "weight"), [(31, 1, 3), (32, 1, 1), (31, 0, 1)], ids=["small thing", "at limit", "stuff"]
)
def test_small_instances_are_counted_in_the_crop(pixels_wide, thing, weight):
    """Weight 3 below 64 pixels in the crop; the instance continues outside, which must not count."""
    segments = np.zeros((64, 64), np.uint8)
    segments[:2, :pixels_wide] = 1
    segments[40:, :] = 1  # outside the crop
    sample = sample_of(smooth_picture(64, 64), segments, things=(0, thing))
    crop = CropConfig(size=32, longer_side=64, small_instance_pixels=64)
    _, label, weights = apply_plan(sample, Plan(height=64, width=64, top=0, left=0), crop)
    assert (weights[label == 7] == weight).all() and (weights[label == 0] == 1).all()


def test_crowds_are_void_with_weight_1():
    sample = sample_of(smooth_picture(32, 32), np.ones((32, 32), np.uint8), classes=(0, 0), things=(0, 1))
    _, label, weights = apply_plan(sample, Plan(height=32, width=32, top=0, left=0), CropConfig(size=32))
    assert not label.any() and (weights == 1).all()


def test_flip_mirrors_picture_and_label():
    segments = np.zeros((32, 32), np.uint8)
    segments[:, :5] = 1
    sample, crop = sample_of(smooth_picture(32, 32), segments), CropConfig(size=32)
    plain = apply_plan(sample, Plan(height=32, width=32, top=0, left=0), crop)
    flipped = apply_plan(sample, Plan(height=32, width=32, top=0, left=0, flip=True), crop)
    for one, other in zip(plain, flipped, strict=True):
        assert np.array_equal(one[:, ::-1], other)


def test_brightness_contrast_and_saturation_factors():
    picture = np.full((32, 32, 3), (60, 120, 180), np.uint8)
    sample, crop = sample_of(picture), CropConfig(size=32)

    def mean(**factors):
        return apply_plan(sample, Plan(height=32, width=32, top=0, left=0, **factors), crop)[0].mean((0, 1))

    base = mean()
    assert np.allclose(mean(brightness=1.2), base * 1.2, atol=1)
    assert np.allclose(mean(contrast=0.5), (base - 127.5) * 0.5 + 127.5, atol=1)
    assert np.ptp(mean(saturation=1e-6)) <= 1  # grey
    assert np.allclose(mean(brightness=1 + 1e-9), base, atol=0.01)  # the matrix product alone changes nothing


def test_plan_depends_only_on_the_generator_and_covers_the_grid():
    crop = CropConfig()
    plans = [plan_training_crop(480, 640, crop, np.random.default_rng([0, 0, i])) for i in range(400)]
    assert plans[:5] == [plan_training_crop(480, 640, crop, np.random.default_rng([0, 0, i])) for i in range(5)]
    assert {plan.width for plan in plans} == {320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960}
    assert 0.4 < np.mean([plan.flip for plan in plans]) < 0.6
    big = [plan for plan in plans if plan.height > 256]
    assert all(0 <= plan.top <= plan.height - 256 and 0 <= plan.left <= plan.width - 256 for plan in big)


def test_centre_crop_is_centred():
    assert plan_center_crop(480, 640, CropConfig()) == Plan(height=480, width=640, top=112, left=192)
    assert plan_center_crop(100, 10, CropConfig(size=64, longer_side=50)) == Plan(height=50, width=5, top=-7, left=-30)


def test_greyscale_and_cmyk_become_rgb():
    grey = decode_jpeg(encode(np.full((8, 8), 90, np.uint8)))
    assert grey.shape == (8, 8, 3) and (grey == 90).all()
    cmyk = decode_jpeg(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0))))
    assert cmyk.shape == (8, 8, 3) and (abs(cmyk.astype(int) - (255, 0, 0)) < 12).all()
    x, _, _ = apply_plan(
        Sample(
            jpeg=encode(np.full((40, 40), 90, np.uint8)),
            segments=np.zeros((40, 40), np.uint8),
            segment_class=np.zeros(1, np.uint8),
            segment_thing=np.zeros(1, np.uint8),
        ),
        Plan(height=20, width=20, top=0, left=0),
        CropConfig(size=20),
    )
    assert (x == 90).all()


@pytest.mark.parametrize("cut", [0, 10, 0.5, 0.9])
def test_truncated_jpeg_is_a_value_error(cut):
    jpeg = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="JPEG"):
        decode_jpeg(jpeg[: int(cut * len(jpeg)) if cut < 1 else cut])


def test_other_formats_and_bombs_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="not a readable JPEG"):
        decode_jpeg(encode(np.zeros((8, 8, 3), np.uint8), "PNG"))
    monkeypatch.setattr("egic.training.crops.MAX_PIXELS", 63)
    with pytest.raises(ValueError, match="over the limit"):
        decode_jpeg(encode(np.zeros((8, 8, 3), np.uint8)))


def test_panoptic_ids_are_decoded_from_rgb():
    rgb = np.array([[[0, 0, 0], [5, 0, 0]], [[1, 2, 0], [1, 2, 3]]], np.uint8)
    assert decode_panoptic_png(encode(rgb, "PNG")).tolist() == [[0, 5], [513, 513 + 3 * 65536]]
    with pytest.raises(ValueError, match="mode L"):
        decode_panoptic_png(encode(np.zeros((2, 2), np.uint8), "PNG"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("longer_side", 0),
        ("min_scale", 0),
        ("scale_step", 0),
        ("colour", 1),
        ("small_instance_pixels", -1),
    ],
)
def test_errors_name_the_invalid_field(field, value):
    with pytest.raises(ValueError, match=f"crop.{field} is {value}"):
        CropConfig(**{field: value})


def test_the_module_does_not_import_torch():
    assert "egic.training.crops" in sys.modules
    source = open(sys.modules["egic.training.crops"].__file__).read()
    assert "import torch" not in source
