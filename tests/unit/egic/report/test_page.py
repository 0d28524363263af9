"""The report: its content, incomplete and hostile input, and that it loads nothing from other hosts."""

import html
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from egic.cli import main
from egic.report import anchors, evaluation_folder, picture_crops
from egic.report.page import write_report
from tests import evaluation_folders

HOSTILE = "<script>alert(1)</script> & 'quotes\""


@pytest.fixture
def folder(tmp_path):
    pictures = {f"{i}.png": evaluation_folders.photograph(i, 64, 96) for i in range(2)}
    return evaluation_folders.make(tmp_path / "evaluation", pictures, labels=("EGIC", HOSTILE), alphas=(0.0, 0.5, 1.0))


def change(folder, change_entry):
    sets = json.loads((folder / "sets.json").read_text())
    for place, entry in enumerate(sets):
        change_entry(place, entry)
    (folder / "sets.json").write_text(json.dumps(sets))


def test_labels_and_reasons_are_escaped(folder):
    page = write_report(folder).read_text()
    assert "<script>alert" not in page and "<cut short>" not in page
    assert html.escape(HOSTILE, quote=False).split("'")[0] in page
    assert page.count("<script>") == 1  # the page's own script


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "a/../../outside.png"])
def test_names_outside_the_folder_are_refused(folder, name):
    table = pq.read_table(folder / "rows.parquet")
    names = [name, *table["name"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("name"), "name", [names]), folder / "rows.parquet")
    with pytest.raises(ValueError, match="which is outside the folder"):
        write_report(folder)


def test_a_damaged_picture_is_one_line(folder, capsys):
    (folder / "pictures" / "0.png" / "original.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert main.main(["report", str(folder)]) == 2
    assert "not a picture of a format" in capsys.readouterr().err


def test_the_page_is_self_contained_and_plots_are_written(folder):
    path = write_report(folder)
    page = path.read_text()
    links = re.findall(r"""(?:src|href|srcset)="([^"]*)""", page)
    assert len(links) > 20 and all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in page and "@import" not in page
    assert {f.name for f in (folder / "plots").iterdir()} >= {"bpp_psnr_db.png", "bpp_psnr_db_dark.png"}
    assert sorted(f.name for f in folder.iterdir() if f.name.startswith(".")) == []


def test_missing_metrics_have_no_column_and_missing_values_are_dashes(folder):
    change(folder, lambda place, e: e.update(ms_ssim=None, dists=0.25 if place == 0 else None, psnr_db=float("nan")))
    page = write_report(folder).read_text().split('<h2 id="published"')[0]
    assert "MS-SSIM" not in page and "LPIPS" not in page
    assert "DISTS" in page and "0.2500" in page and "<td>–</td>" in page
    assert "PSNR over rate" not in page and "nan" not in page.split("</style>")[1].split("data:")[0]


def test_a_folder_with_one_point_and_few_values_has_a_report(tmp_path):
    row = {"label": "a", "codec": "egic", "point": "alpha 1", "name": "x.png", "bpp": 0.1, "alpha": 1.0}
    evaluation_folders.write(tmp_path, [row])
    change(tmp_path, lambda _, e: e.update(bpp=None))
    assert "0 pictures" not in write_report(tmp_path).read_text()
    evaluation_folders.write(tmp_path, [row])
    (tmp_path / "sets.json").write_text("[]")
    assert write_report(tmp_path).is_file()


def test_unreliable_distances_are_marked(folder):
    change(folder, lambda place, e: e.update(fid256=40.0 + place, reliable=place >= 3, num_patches=5))
    page = write_report(folder).read_text()
    assert "40.00†" in page and "43.00†" not in page and "43.00" in page
    assert "PSNR against FID/256" in page


def test_the_realism_plot_uses_lpips_without_fid(folder):
    change(folder, lambda place, e: e.update(lpips_alex=0.1 + place / 100))
    page = write_report(folder).read_text()
    assert "PSNR against LPIPS" in page and "PSNR against FID" not in page


def test_bd_rates_are_relative_to_an_anchor(folder):
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    for label, gain in (("slow", 1.0), ("quick", 1.1)):
        for rate in (0.1, 0.2, 0.4):
            values = {"bpp": rate * gain, "psnr_db": 30 + 10 * rate, "alpha": None, "codec": "jpeg"}
            rows.append(rows[0] | values | {"label": label, "point": f"quality {rate}"})
    evaluation_folders.write(folder, rows)
    page = write_report(folder).read_text()
    assert "Against slow" in page and "+10.0 %" in page
    assert "EGIC, alpha 0 has 1 point of PSNR" in page


def test_rates_between_trained_ones_and_both_sliders_are_on_the_page(tmp_path):
    pictures = {f"{i}.png": evaluation_folders.photograph(i, 64, 96) for i in range(2)}
    qualities = (0, 10, 20, 30, 40)
    folder = evaluation_folders.make(tmp_path / "e", pictures, alphas=(0.0, 1.0), qualities=qualities)
    page = write_report(folder).read_text()
    assert "Large marks are the rates that the model was trained for" in page
    assert page.count('data-kind="group"') == page.count('data-kind="alpha"') == 2
    assert "Against EGIC, alpha 0" in page  # BD-rate between alphas of one model
    assert "quality 40, alpha 1" in page and "Paired differences" in page


def test_pictures_stay_within_the_size_limit(folder):
    found = evaluation_folder.read(folder)
    shown = evaluation_folder.shown(found)
    everything, stored = picture_crops.comparisons(shown, 10**9)
    assert stored == "lossless" and [c["name"] for c in everything] == ["0.png", "1.png"]
    assert everything[0]["codecs"][0]["alphas"] == ["alpha 0", "alpha 0.5", "alpha 1"]
    for limit in (200_000, 40_000, 4_000):
        cut, _ = picture_crops.comparisons(shown, limit)
        frames = [c["original"] for c in cut] + [f["uri"] for c in cut for m in c["codecs"] for f in m["frames"]]
        assert sum(len(uri) for uri in frames) < limit * 1.4  # base64
    assert len(cut) < 2  # pictures that do not fit at the smallest size are omitted


def test_the_crop_has_the_most_detail():
    x = np.full((256, 256, 3), 128, np.uint8)
    x[160:250, 150:240] = evaluation_folders.photograph(0, 90, 90)
    top, left = picture_crops.busiest(x, 96)
    assert top in (160, 128) and left in (128, 160)


def test_the_command_adds_anchors_to_the_page(tmp_path, capsys):
    """Pictures of several folders have the names that `egic evaluate` gives them."""
    shown = {}
    for number, name in enumerate(("one/0.png", "two/0.png", "two/deep/1.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shown[name.removeprefix("two/") if "deep" in name else name] = x = evaluation_folders.photograph(number, 64, 96)
        Image.fromarray(x).save(tmp_path / name)
    folder = evaluation_folders.make(tmp_path / "evaluation", shown)
    images = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main.main(["report", str(folder), "--anchors", "jpeg", "--images", *images]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "JPEG, rate of EGIC" in page and anchors.find(["jpeg"])[0][0].label in page


@pytest.mark.parametrize(
    "arguments, message",
    [((), "is not an evaluation folder"), (("--anchors", "jpeg"), "need each other")],
)
def test_a_users_mistake_is_one_line(tmp_path, capsys, arguments, message):
    assert main.main(["report", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
