"""JPEG 2000 of every depth, compared with an independent reader (imagecodecs): the same pixels, or refused."""

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from egic import pictures
from egic.errors import UserError
from tests.unit.egic.pictures.test_reading import saved


def test_16_bit_grey_jpeg_2000_is_read():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    x, _ = pictures.read(saved(Image.fromarray(values), "JPEG2000"))
    assert np.array_equal(x[..., 0], np.rint(values / 257))


@pytest.mark.parametrize("container", ["j2k", "jp2"])
@pytest.mark.parametrize("samples", [1, 3, 4])
@pytest.mark.parametrize("bits", [1, 4, 7, 8, 9, 10, 12, 16])
def test_samples_of_every_depth_are_right_or_refused(bits, samples, container, tmp_path):
    top = 2**bits - 1
    ramp = np.rint(np.linspace(0, top, 1024)).reshape(32, 32)
    values = np.stack([ramp, ramp[::-1], ramp.T, np.full_like(ramp, top)], -1)[..., :samples]
    values = np.squeeze(values).astype(np.uint16 if bits > 8 else np.uint8)
    data = imagecodecs.jpeg2k_encode(
        values, level=0, reversible=True, codecformat=container, bitspersample=bits, mct=False
    )
    assert np.array_equal(imagecodecs.jpeg2k_decode(data), values)
    wanted = values.reshape(32, 32, samples)[..., :3] / top * 255
    path = tmp_path / f"x.{container}"
    path.write_bytes(data)
    if bits == 8 or (bits > 9 and samples == 1) or (bits, samples, container) == (9, 1, "j2k"):
        assert np.abs(pictures.read(data)[0] - wanted).max() <= 1  # Pillow shifts instead of scaling
        return
    with pytest.raises(UserError, match=f"JPEG 2000 with samples of {bits} bits"):
        pictures.read(data)
    with Image.open(path) as image, pytest.raises(UserError, match=f"JPEG 2000 with samples of {bits} bits"):
        pictures.from_image(image)
