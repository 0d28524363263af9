"""Other codecs: rates rise with quality, target sizes are met, and errors name codecs that are not installed."""

import io
import json
import re
import sys
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from egic.errors import UserError
from egic.metrics.quality import Quality
from egic.report import anchors, evaluation_folder, matched_rates
from tests import evaluation_folders


def psnr(x_hat: np.ndarray, x: np.ndarray) -> float:
    return Quality(("psnr_db",), {})(x_hat, x)["psnr_db"]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return evaluation_folders.photograph(1)


@pytest.fixture(params=["jpeg", "webp", "avif", "jxl"])
def anchor(request) -> anchors.Anchor:
    found, missing = anchors.find([request.param])
    if missing:
        pytest.skip(missing[request.param])
    return found[0]


def test_rate_and_quality_rise_together(anchor, x):
    coded = [anchor.code(x, quality) for quality in (10, 50, 90)]
    rates = [c.bpp for c in coded]
    quality = [psnr(c.picture, x) for c in coded]
    assert rates == sorted(rates) and rates[0] < rates[-1] / 2
    assert quality == sorted(quality) and quality[0] + 2 < quality[-1]
    assert coded[0].picture.shape == x.shape and coded[0].picture.dtype == np.uint8


def test_the_nearest_file_is_close_to_the_target_size(anchor, x):
    wanted = anchor.code(x, 40).num_bytes * 1.3
    found = anchors.Matcher(anchor, x).nearest(wanted)
    assert found.num_bytes == pytest.approx(wanted, rel=0.08)  # qualities are integers


def test_a_target_below_the_smallest_file_selects_the_smallest_file(x):
    jpeg = anchors.find(["jpeg"])[0][0]
    assert anchors.Matcher(jpeg, x).nearest(1).num_bytes == jpeg.code(x, jpeg.low).num_bytes


@pytest.fixture(params=[(0, 100), (51, 0)])
def counted(request):
    """A codec whose files have 10 * 1.1 ** step bytes, and the list of the qualities that it encoded."""
    (low, high), encoded = request.param, []

    def run(x, quality):
        def decode():
            encoded.append(("decoded", quality))
            return x, 0.0

        encoded.append(quality)
        return anchors.Encoded(num_bytes=round(10 * 1.1 ** abs(quality - low)), encode_s=0, decode=decode)

    return anchors.Anchor(codec="jpeg", low=low, high=high, run=run), encoded


@pytest.mark.parametrize("wanted", [0, 10, 10.4, 11, 57, 333, 334, 1200, 10**6])
def test_the_nearest_quality_is_selected_for_rising_and_falling_scales(counted, wanted):
    anchor, _ = counted
    matcher = anchors.Matcher(anchor, np.zeros((1, 8, 3), np.uint8))
    sizes = [round(10 * 1.1**step) for step in range(abs(anchor.high - anchor.low) + 1)]
    best = min(abs(size - wanted) for size in sizes)
    assert abs(matcher.nearest(wanted).num_bytes - wanted) == best


def test_the_search_decodes_nothing_and_encodes_nothing_twice(counted):
    anchor, encoded = counted
    matcher = anchors.Matcher(anchor, np.zeros((1, 8, 3), np.uint8))
    for wanted in (100, 200, 400, 800):
        matcher.nearest(wanted)
    decoded = [each for each in encoded if isinstance(each, tuple)]
    assert len(decoded) == 4 and len(set(encoded)) == len(encoded)
    assert len(encoded) - 4 <= 2 + 4 * 4  # pure bisection needs 7 each


def test_qualities_out_of_range_and_unknown_names_are_errors():
    jpeg = anchors.find(["jpeg"])[0][0]
    with pytest.raises(ValueError, match="JPEG takes qualities 1"):
        jpeg.code(np.zeros((8, 8, 3), np.uint8), 101)
    with pytest.raises(ValueError, match="--anchors has 'jpg', which is not one of jpeg, webp"):
        anchors.find(["jpg"])


def test_missing_codecs_are_listed_with_the_reason(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found, missing = anchors.find(["vtm", "jpeg", "bpg"])
    assert [a.codec for a in found] == ["jpeg"]
    assert missing["bpg"] == "bpgenc is not on the PATH" and set(missing) == {"vtm", "bpg"}


@pytest.fixture
def bpg(tmp_path, monkeypatch):
    """Stand-ins for bpgenc and bpgdec with the same arguments, which write JPEGs."""
    for name, body in (
        ("bpgenc", "q = int(a[a.index('-q') + 1]); assert q < 51, 'too coarse'\n"
         "Image.open(a[-1]).save(a[a.index('-o') + 1], 'JPEG', quality=100 - 2 * q)"),
        ("bpgdec", "Image.open(a[-1]).save(a[a.index('-o') + 1], 'PNG')"),
    ):  # fmt: skip
        file = tmp_path / name
        file.write_text(f"#!{sys.executable}\nimport sys\nfrom PIL import Image\na = sys.argv\n{body}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return anchors.find(["bpg"])[0][0]


@pytest.mark.slow
def test_binaries_are_called_through_compressai(bpg, x):
    pytest.importorskip("compressai")
    coded = bpg.code(x, 30)
    assert coded.picture.shape == x.shape
    jpeg = io.BytesIO()
    Image.fromarray(x).save(jpeg, "JPEG", quality=40)
    assert coded.num_bytes == len(jpeg.getvalue())
    with pytest.raises(ValueError, match="BPG failed"):
        bpg.code(x, 51)


@pytest.mark.slow
def test_vtm_runs_with_the_settings_of_its_source_tree(tmp_path, monkeypatch, x):
    """Stand-ins copy their input, so that only the conversion to YCbCr and back changes the picture."""
    pytest.importorskip("compressai")
    (tmp_path / "bin").mkdir()
    for name, source, target in (("EncoderAppStatic", "-i", "-b"), ("DecoderAppStatic", "-b", "-o")):
        file = tmp_path / "bin" / name
        copy = f"shutil.copy(a[a.index('{source}') + 1], a[a.index('{target}') + 1])"
        file.write_text(f"#!{sys.executable}\nimport shutil, sys\na = sys.argv\n{copy}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "encoder_intra_vtm.cfg" in anchors.find(["vtm"])[1]["vtm"]
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "encoder_intra_vtm.cfg").touch()
    coded = anchors.find(["vtm"])[0][0].code(x, 40)
    assert coded.num_bytes == x.size
    assert psnr(coded.picture, x) > 43  # 44 is the maximum


@pytest.fixture
def folder(tmp_path):
    pictures = {f"{i}.png": evaluation_folders.photograph(i, 64, 96) for i in range(2)}
    for name, x in pictures.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(x).save(tmp_path / "images" / name)
    return evaluation_folders.make(tmp_path / "evaluation", pictures, labels=("small", "large"), bpp=1.5)


def test_rows_at_the_models_rates_are_added_to_the_folder(folder):
    for _ in range(2):  # the second call replaces the rows of the first
        matched_rates.add(folder, matched_rates.below([folder.parent / "images"]), ["jpeg"])
    found = evaluation_folder.read(folder)
    jpeg = [row for row in found.rows if row["codec"] == "jpeg"]
    more = ["1.5 x the largest file", "2 x the largest file"]
    assert [row["point"] for row in jpeg[:4]] == ["rate of small", "rate of large", *more]
    assert len(jpeg) == 8 and len(found.rows) == 8 + 20
    for row, wanted in zip(jpeg[:4], (1.5, 2.25, 3.375, 4.5), strict=True):
        assert row["bpp"] == pytest.approx(wanted, rel=0.08) and row["psnr_db"] > 20
        assert row["lpips_alex"] is None and row["alpha"] is None
    sets = [e for e in found.sets if e["codec"] == "jpeg"]
    assert len(sets) == 4 and sets[0]["num_pictures"] == 2 and sets[0]["fid256"] is None
    assert sets[0]["psnr_db"] == pytest.approx(np.mean([r["psnr_db"] for r in jpeg if r["point"] == "rate of small"]))
    _, decoded = evaluation_folder.shown(found)["0.png"]
    assert [s.row["point"] for s in decoded if s.row["codec"] == "jpeg"] == ["rate of small", "rate of large", *more]
    assert len(decoded) == 14


def test_a_codec_that_is_given_twice_is_used_once(folder):
    found = matched_rates.add(folder, matched_rates.below([folder.parent / "images"]), ["jpeg", "jpeg"])
    assert {entry["num_pictures"] for entry in found.sets} == {2}


def test_a_model_with_a_codecs_name_is_not_replaced(tmp_path):
    x = evaluation_folders.photograph(0, 64, 96)
    folder = evaluation_folders.make(tmp_path / "named", {"0.png": x}, labels=("JPEG",))
    before = (folder / "rows.parquet").read_bytes()
    with pytest.raises(UserError, match="model that is called JPEG, as a codec is.*--model NAME=REF"):
        matched_rates.add(folder, lambda name: x, ["webp", "jpeg"])
    assert (folder / "rows.parquet").read_bytes() == before


def test_other_pictures_are_refused(folder):
    images = folder.parent / "images"
    Image.new("RGB", (5, 5)).save(images / "0.png")
    with pytest.raises(ValueError, match="0.png has 5 x 5 pixels, the evaluated one has 96 x 64"):
        matched_rates.add(folder, matched_rates.below([images]), ["jpeg"])
    (images / "0.png").unlink()
    with pytest.raises(ValueError, match="0.png is not in .*images; name the --images"):
        matched_rates.add(folder, matched_rates.below([images]), ["jpeg"])


def test_other_and_damaged_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="not an evaluation folder: it has no rows.parquet"):
        evaluation_folder.read(tmp_path)
    (folder / "sets.json").write_text("[{]")
    with pytest.raises(ValueError, match="sets.json is not JSON"):
        evaluation_folder.read(folder)
    (folder / "sets.json").write_text(json.dumps([{"label": "a"}]))
    with pytest.raises(ValueError, match="must be a list of objects with label, codec, point"):
        evaluation_folder.read(folder)
    (folder / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="rows.parquet cannot be read"):
        evaluation_folder.read(folder)


def write_zoo(folder, name: str, qualities) -> None:
    """Small models of a learned codec with random weights, under the names of compressai's files."""
    from compressai.zoo import image

    widths = (8,) if name.startswith("cheng") else (8, 12)
    for quality in qualities:
        with torch.random.fork_rng():
            torch.manual_seed(quality)
            model = image.model_architectures[name](*widths)
        torch.save(model.state_dict(), folder / image.model_urls[name]["mse"][quality].rsplit("/", 1)[1])


@pytest.mark.parametrize("name", anchors.LEARNED)
def test_learned_codecs_use_the_weights_of_a_folder(name, tmp_path, monkeypatch, x, one_thread):
    compressai = pytest.importorskip("compressai.zoo").image
    write_zoo(tmp_path, name, (2, 3, 5))
    monkeypatch.setenv("EGIC_WEIGHTS", str(tmp_path))
    (codec,), missing = anchors.find([name])
    assert not missing and (codec.codec, codec.low, codec.high) == (name, 2, 3)  # up to the first missing quality
    x = x[:70, :50]
    coded = codec.code(x, 3)
    assert coded.picture.shape == x.shape and coded.picture.dtype == np.uint8
    file = next(tmp_path.glob("*-3-*"))
    model = compressai.model_architectures[name].from_state_dict(torch.load(file, weights_only=True)).eval()
    model.update()
    padded = np.zeros((128, 64, 3), np.uint8)
    padded[29:99, 7:57] = x  # in the middle, as compressai's own evaluation puts it
    with torch.no_grad():
        wanted = model.compress(torch.from_numpy(padded).permute(2, 0, 1)[None] / 255)
        x_hat = model.decompress(**wanted)["x_hat"][0, :, 29:99, 7:57]
    assert coded.num_bytes == sum(len(strings[0]) for strings in wanted["strings"])
    assert coded.bpp == 8 * coded.num_bytes / (70 * 50)
    assert np.array_equal(coded.picture, (255 * x_hat).round().byte().permute(1, 2, 0).numpy())


def test_a_learned_codec_without_weights_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("compressai.zoo")
    monkeypatch.setenv("EGIC_WEIGHTS", str(tmp_path))

    def offline(*args, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("compressai.zoo.image.load_state_dict_from_url", offline)
    found, missing = anchors.find(["mbt2018-mean", "jpeg"])
    assert [a.codec for a in found] == ["jpeg"]
    assert re.fullmatch(
        r"weights of compressai's mbt2018-mean could not be downloaded \(.*Name or service not known.*\); go online, "
        r"or put mbt2018-mean-1-\w+.pth.tar into a folder and name it in EGIC_WEIGHTS",
        missing["mbt2018-mean"],
    )
    write_zoo(tmp_path, "mbt2018-mean", (1,))
    file = next(tmp_path.glob("mbt2018-mean-1-*"))
    file.write_bytes(file.read_bytes()[:1000])
    assert "does not hold compressai's mbt2018-mean" in anchors.find(["mbt2018-mean"])[1]["mbt2018-mean"]
