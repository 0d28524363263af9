"""Pictures of the demo page: every alpha equals the command line's picture, and runs no network."""

import io

import numpy as np
import pytest
from PIL import Image

from egic import pictures
from egic.demo import session
from egic.demo.session import UploadCoder
from egic.errors import UserError
from egic.file_size import bpp
from tests.codec_models import tiny_model

X = np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)
LIMIT = 256 * 256


class Counted:
    """A coder that counts its calls."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def compress(self, image, **rate):
        self.calls.append("compress")
        return self.model.compress(image, **rate)

    def decode_pictures(self, data):
        self.calls.append("decode")
        return self.model.decode_pictures(data)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def opened(model):
    return UploadCoder(model, LIMIT).open("a.png", pictures.write(X))


@pytest.mark.parametrize("alpha", [0, 0.01, 0.3, 0.5, 0.77, 1])
def test_every_alpha_equals_decompress_bit_for_bit(model, opened, alpha):
    assert np.array_equal(opened.at(alpha), model.decompress(opened.data, alpha))


def test_alpha_runs_no_network(model):
    counted = Counted(model)
    opened = UploadCoder(counted, LIMIT).open("a.png", pictures.write(X))
    assert counted.calls == ["compress", "decode"]
    assert not np.array_equal(opened.at(0), opened.at(1)) and counted.calls == ["compress", "decode"]


def test_another_rate_makes_another_file_of_the_same_picture():
    model = tiny_model(rates=6)
    coder = UploadCoder(model, LIMIT)
    opened = coder.open("a.png", pictures.write(X))
    assert opened.quality == 50
    for rate in ({"quality": 3}, {"max_bytes": len(opened.data) - 1}):
        again = coder.replaced(opened, coder.compress(X, **rate))
        assert again.data == model.compress(X, **rate) and again.quality == rate.get("quality", again.quality) < 50
        assert np.array_equal(again.at(0.4), model.decompress(again.data, 0.4)) and again.compress_s > 0
        assert again.original is opened.original and again.name == opened.name
        assert again.jpeg.num_bytes < opened.jpeg.num_bytes or len(again.data) > len(opened.data) - 2
    with pytest.raises(UserError, match="at least"):
        coder.compress(X, max_bytes=10)


def test_a_model_of_one_rate_has_no_quality(opened):
    assert opened.quality is None


def test_a_picture_is_shown_with_its_file_and_a_jpeg_of_that_size(model, opened):
    assert opened.data == model.compress(X) and np.array_equal(opened.original, X)
    assert opened.size == (48, 72) and opened.bpp == bpp(len(opened.data), 48, 72)
    other = [session.anchors.find(("jpeg",))[0][0].code(X, q).num_bytes for q in range(1, 101)]
    assert abs(opened.jpeg.num_bytes - len(opened.data)) == min(abs(n - len(opened.data)) for n in other)
    assert opened.psnr_db(X) == 100 and opened.psnr_db(opened.jpeg.picture) < 60


def test_an_egic_file_is_decoded_and_has_no_original(model, opened):
    again = UploadCoder(model, LIMIT).open("b.egic", opened.data)
    assert again.original is None and again.jpeg is None and again.psnr_db(again.at(0)) is None
    assert again.compress_s is None and np.array_equal(again.at(0.4), opened.at(0.4))


def test_without_orp_there_is_one_picture():
    model = tiny_model(orp=False)
    opened = UploadCoder(model, LIMIT).open("a.png", pictures.write(X))
    assert opened.x_mse is None and np.array_equal(opened.at(0.2), model.decompress(opened.data))


def test_notes_of_the_conversion_are_returned(model):
    out = io.BytesIO()
    Image.fromarray(np.dstack([X, X[..., 0]]), "RGBA").save(out, "PNG")
    assert "white" in UploadCoder(model, LIMIT).open("a.png", out.getvalue()).notes[0]


@pytest.mark.parametrize("form", ["png", "egic"])
def test_too_large_pictures_are_refused_before_decoding(model, opened, form, monkeypatch):
    monkeypatch.setattr(pictures, "read", lambda data: pytest.fail("decoded"))
    data = pictures.write(X) if form == "png" else opened.data
    with pytest.raises(ValueError, match="72 × 48 pixels.*--max-pixels"):
        UploadCoder(Counted(None), LIMIT - 1).open("a", data)


def test_the_size_limit_counts_padded_pixels(model):
    thin = np.zeros((1, 300, 3), np.uint8)
    with pytest.raises(ValueError, match="300 × 1 pixels"):
        UploadCoder(Counted(None), LIMIT).open("thin.png", pictures.write(thin))


def test_files_that_cannot_be_opened_are_one_line(model, opened):
    stranger = tiny_model(seed=1).compress(X)
    for data, word in (
        (b"", "empty"), (b"notes", "format that is read"), (pictures.write(X)[:500], "damaged"),
        (stranger, "made with model"),
        (opened.data[:-3], "checksum"), (opened.data[:4], "not an .egic file"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word) as error:
            UploadCoder(model, LIMIT).open("a", data)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alphas_out_of_range_are_errors(opened, alpha):
    with pytest.raises(ValueError, match="alpha must lie"):
        opened.at(alpha)


@pytest.mark.parametrize("name, plain", [("../a b/ü 1.tar.png", "ü_1.tar"), ("..", "picture"), ("x" * 99, "x" * 60)])
def test_upload_names_become_safe_file_names(name, plain, model):
    assert UploadCoder(model, LIMIT).open(name, pictures.write(X)).name == plain
