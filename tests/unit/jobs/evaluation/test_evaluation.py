"""Evaluation without Ray: parts of pictures, tables from parts, and errors of the command line."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from egic import pictures
from egic.cli import main
from egic.errors import UserError
from egic.metrics import fid_kid, measures, quality
from egic.metrics.quality import Quality
from egic.report import anchors, evaluation_folder
from egic.report.curves import METRICS
from egic.report.evaluation_folder import slug
from jobs import evaluate
from jobs.config.schema import EvaluateConfig
from jobs.evaluation import tables
from jobs.evaluation.coder import Coder
from jobs.evaluation.evaluation import short_name
from jobs.evaluation.listing import first_readable, of_folders
from jobs.evaluation.parts import Parts, Task
from jobs.tracking import model_registry
from jobs.training import reuse_or_train as stage_run
from jobs.training.stage import load_stage
from tests.codec_models import tiny_model
from tests.evaluation_folders import photograph

ALPHAS = (0.0, 0.5, 1.0)
MODELS = {"orp": "a" * 64, "plain": "b" * 64}
TASK = Task(labels=MODELS, qualities=dict.fromkeys(MODELS.values(), (None,)), patches=(256,))
RATES = dict.fromkeys(MODELS.values(), 0)


@pytest.fixture(scope="module")
def models() -> dict:
    return {MODELS["orp"]: tiny_model(0), MODELS["plain"]: tiny_model(1, orp=False)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, one of them truncated."""
    rng, place = np.random.default_rng(0), tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for name, size in (("a.png", (40, 50)), ("b.png", (33, 64)), ("more/c.png", (48, 48)), ("broken.png", (40, 40))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / name)
    (place / "broken.png").write_bytes((place / "broken.png").read_bytes()[:900])
    (place / "notes.txt").write_text("no picture")
    return place


def fake_features(x: np.ndarray) -> dict[int, np.ndarray]:
    """Features of two 'patches' per picture: its mean and standard deviation."""
    return {256: np.array([[x.mean(), x.std()], [x.std(), x.mean()]], np.float32)}


def coder(models: dict, place: Path, shown=frozenset(), features=fake_features, task=TASK) -> Coder:
    return Coder(
        models=models, task=task, quality=Quality(["psnr_db", "ms_ssim"], {}), features=features,
        parts=Parts(folder=place), alphas=ALPHAS, shown=frozenset(shown),
    )  # fmt: skip


def rows_of(work: Coder, listed, rates=RATES) -> list[tuple[dict, str]]:
    codecs, _ = anchors.find(work.task.anchors)
    return tables.rows(work.parts, work.task, rates, codecs, listed)


def without_times(found) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("encode_s", "decode_s")} for row, _ in found]


def test_pictures_are_listed_by_name(folder, tmp_path):
    listed, skipped = of_folders([str(folder)])
    assert [p.name for p in listed] == ["a.png", "b.png", "broken.png", "more/c.png"] and not skipped
    assert [p.name for p in of_folders([str(folder / "b.png")])[0]] == ["b.png"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((folder / "b.png").read_bytes())
    names = [p.name for p in of_folders([str(folder), str(other)])[0]]
    assert names == ["b.png", "broken.png", "more/c.png", "other/a.png", "pictures/a.png"]
    for places, message in (
        (["nowhere"], "--images nowhere does not exist"),
        ([str(folder), str(folder)], "has pictures/a.png twice"),
    ):
        with pytest.raises(UserError, match=message):
            of_folders(places)


def test_what_is_no_picture_of_the_user_is_not_measured(folder, tmp_path, caplog, monkeypatch):
    """Hidden files and folders, results of this command, and, with the reason, links and devices."""
    picture = (folder / "a.png").read_bytes()
    for name in (
        ".hidden.png",
        ".thumbnails/a.png",
        ".ipynb_checkpoints/b.png",
        "out/evaluate/k/pictures/original.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    monkeypatch.chdir(folder)
    for images, output in ((str(folder), "out"), (".", str(folder / "out"))):
        caplog.clear()
        listed, skipped = of_folders([images], output)
        assert [p.name for p in listed] == ["a.png", "b.png", "broken.png", "more/c.png"]
        assert [s["name"] for s in skipped] == ["gone.png", "linked", "pipe.png"]
        assert [s["reason"].split(",")[0] for s in skipped] == [
            "a broken link",
            "a link to a folder",
            "no regular file",
        ]
        assert f"left out 1 file in the folder of --output {output}" in caplog.text
    with pytest.raises(UserError, match="--output . is a folder of --images"):
        of_folders([str(folder)], ".")
    assert len(of_folders([str(folder / "out" / "evaluate")], "out")[0]) == 1  # asked for


def test_notes_about_pictures_are_reported(models, tmp_path):
    Image.new("RGBA", (40, 40), (0, 0, 255, 128)).save(tmp_path / "see-through.png")
    notes: list[str] = []
    work, picture = coder(models, tmp_path / "parts"), of_folders([str(tmp_path / "see-through.png")])[0][0]
    assert work(picture, notes) == "" and notes == pictures.read((tmp_path / "see-through.png").read_bytes())[1] != []


def test_rows_count_the_bits_of_real_files(folder, models, tmp_path):
    listed, _ = of_folders([str(folder)])
    work = coder(models, tmp_path / "parts", shown=["a.png"])
    reasons = {p.name: work(p) for p in listed}
    assert "damaged picture" in reasons.pop("broken.png") and set(reasons.values()) == {""}
    good = [p for p in listed if p.name in reasons]
    found = rows_of(work, good[::-1])
    rows = pa.Table.from_pylist([row for row, _ in found], schema=tables.SCHEMA).to_pylist()
    assert rows == [row for row, _ in found] and len(rows) == 3 * (len(ALPHAS) + 1)
    assert rows == sorted(rows, key=lambda r: (r["label"], r["alpha"] or 0, r["name"]))
    for row in rows:
        x = good[[p.name for p in good].index(row["name"])].read()
        model = models[row["model_digest"]]
        data = model.compress(x)
        assert (row["height"], row["width"]) == x.shape[:2] and row["bytes"] == len(data)
        assert row["bpp"] == 8 * len(data) / (row["height"] * row["width"])
        mse = ((model.decompress(data, row["alpha"]).astype(float) - x) ** 2).mean()
        assert row["psnr_db"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
        assert row["ms_ssim"] is None and row["lpips_vgg"] is None and row["quality"] is None
    points = {(r["label"], r["point"], r["alpha"]) for r in rows}
    assert points == {("orp", f"alpha {a:g}", a) for a in ALPHAS} | {("plain", "decoded", None)}  # no ORP, no alpha

    shown = first_readable(listed, 1, None)
    tables.write_shown(tmp_path / "out", found, shown, [p.read() for p in shown])
    made = sorted(p.name for p in (tmp_path / "out" / "pictures" / "a.png").iterdir())
    assert made == ["original.png", "orp_alpha_0.5.png", "orp_alpha_0.png", "orp_alpha_1.png", "plain_decoded.png"]
    x = shown[0].read()
    assert (np.asarray(Image.open(tmp_path / "out/pictures/a.png/original.png")) == x).all()
    model = models[MODELS["orp"]]
    kept = np.asarray(Image.open(tmp_path / "out/pictures/a.png/orp_alpha_0.5.png"))
    assert (kept == model.decompress(model.compress(x), 0.5)).all()
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_every_quality_of_one_model_beside_other_codecs_of_its_sizes(tmp_path):
    place, digest = tmp_path / "pictures", "c" * 64
    place.mkdir()
    for i in range(2):
        Image.fromarray(photograph(i, 64, 96)).save(place / f"{i}.png")
    task = Task(labels={"m": digest}, qualities={digest: (10, 40, 90)}, anchors=("jpeg", "webp"), patches=(256,))
    model, (listed, _) = tiny_model(rates=6), of_folders([str(place)])
    work = coder({digest: model}, tmp_path / "parts", shown=["0.png"], task=task)
    assert [work(p) for p in listed] == ["", ""] and all(work.parts.is_done(task, p, p.name == "0.png") for p in listed)
    found = rows_of(work, listed, {digest: 6})
    rows = [row for row, _ in found]
    models = [row for row in rows if row["codec"] == "egic"]
    assert {(r["quality"], r["interpolated"]) for r in models} == {(10, True), (40, False), (90, True)}
    assert len(models) == 2 * 3 * 3 and len(rows) == len(models) + 2 * 2 * 4
    for row in models:
        data = model.compress(listed[int(row["name"][0])].read(), quality=row["quality"])
        assert row["bytes"] == len(data) and row["point"] == f"quality {row['quality']}, alpha {row['alpha']:g}"
    jpeg = [r for r in rows if r["label"] == "JPEG" and r["name"] == "0.png"]
    wanted = {f"rate of m, quality {r['quality']}": r["bytes"] for r in models if r["name"] == "0.png"}
    assert list(wanted) == [r["point"] for r in jpeg[:3]] and jpeg[3]["point"] == "1.5 x the largest file"
    codec, x = anchors.find(["jpeg"])[0][0], listed[0].read()
    for row in jpeg[:3]:
        sizes = [codec.encode(x, q).num_bytes for q in range(1, 101)]
        off = abs(row["bytes"] - wanted[row["point"]])
        assert off == min(abs(size - wanted[row["point"]]) for size in sizes) and row["alpha"] is None
    sets = tables.sets(found, work.parts, listed, ("fid256",))
    assert all(e["fid256"] is not None and e["kid256"] is None for e in sets)  # all codecs have the same measures
    assert [e["quality"] for e in sets if e["codec"] == "egic"] == [10] * 3 + [40] * 3 + [90] * 3
    curves = tables.curve_rows(sets)
    assert [row["step"] for row in curves] == [10] * 3 + [40] * 3 + [90] * 3
    assert {"rd/alpha_0/psnr_db", "rd/alpha_0.5/bpp", "rd/alpha_1/fid256"} <= {name for row in curves for name in row}
    assert "psnr_db_quality_40_alpha_0.5" in tables.summarise(sets, rows)
    again = coder({digest: model}, tmp_path / "parts", task=replace(task, anchors=("jpeg",)))
    assert all(again.parts.is_done(again.task, p, False) for p in listed)  # with fewer codecs all results exist


def test_pictures_with_equal_stems_or_names_in_any_encoding_stay_separate(models, tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    names = [b"a.png", b"a.jpg", b"caf\xe9 50%#?.png"]
    for i, name in enumerate(names):
        Image.fromarray(photograph(i, 40, 40)).save(tmp_path / f"x{name[-4:].decode()}")
        os.rename(tmp_path / f"x{name[-4:].decode()}", os.fsencode(place) + b"/" + name)
    listed, _ = of_folders([str(place)])
    assert [p.name for p in listed] == ["a.jpg", "a.png", "caf\\xe9 50%#?.png"]
    work = coder(models, tmp_path / "parts", shown=[p.name for p in listed])
    assert [work(p) for p in listed] == [""] * 3
    found = rows_of(work, listed)
    out = tmp_path / "out"
    tables.write_shown(out, found, listed, [p.read() for p in listed])
    rows = [row for row, _ in found]
    evaluation_folder.write(out, rows, tables.sets(found, work.parts, listed, ()))
    shown = evaluation_folder.shown(evaluation_folder.read(out))
    assert list(shown) == [p.name for p in listed] and {len(files) for _, files in shown.values()} == {4}
    for picture in listed:
        assert (np.asarray(Image.open(shown[picture.name][0])) == picture.read()).all()
    for path in (out / "pictures").iterdir():
        assert path.name.encode().isalnum() or set(path.name) <= set("abcdefxé0123456789_.-gjnp")


def test_a_killed_run_continues_and_codes_nothing_twice(folder, models, tmp_path, monkeypatch):
    listed = [p for p in of_folders([str(folder)])[0] if p.name != "broken.png"]
    for picture in listed:
        coder(models, tmp_path / "whole")(picture)
    whole = rows_of(coder(models, tmp_path / "whole"), listed)

    coded, code = [], Coder.code

    def killed(self, path, *rest):
        if len(coded) == 3:
            raise KeyboardInterrupt
        coded.append(path)
        code(self, path, *rest)

    monkeypatch.setattr(Coder, "code", killed)
    with pytest.raises(KeyboardInterrupt):
        for picture in listed:
            coder(models, tmp_path / "cut")(picture)
    monkeypatch.setattr(Coder, "code", code)
    first = {p: p.read_bytes() for p in (tmp_path / "cut").rglob("*.json")}
    assert len(first) == 3
    again = []
    monkeypatch.setattr(Coder, "code", lambda self, path, *rest: again.append(path) or code(self, path, *rest))
    for picture in listed:
        assert coder(models, tmp_path / "cut")(picture) == ""
    assert len(again) == 3 and not set(again) & set(coded)
    assert all(path.read_bytes() == content for path, content in first.items())
    work = coder(models, tmp_path / "cut")
    found = rows_of(work, listed)
    assert without_times(found) == without_times(whole)
    sets = [tables.sets(f, p, listed, ("fid256",)) for f, p in ((found, work.parts), (whole, work.parts))]
    assert sets[0] == sets[1]


def test_a_shown_picture_without_its_pngs_is_not_done(folder, models, tmp_path):
    picture = of_folders([str(folder / "a.png")])[0][0]
    work = coder(models, tmp_path)
    work(picture)
    assert work.parts.is_done(TASK, picture, shown=False) and not work.parts.is_done(TASK, picture, shown=True)
    coder(models, tmp_path, shown=["a.png"])(picture)
    assert work.parts.is_done(TASK, picture, shown=True)


def test_sets_are_means_and_mark_unreliable_distances(folder, models, tmp_path, monkeypatch):
    listed = [p for p in of_folders([str(folder)])[0] if p.name != "broken.png"]
    work = coder(models, tmp_path)
    for picture in listed:
        work(picture)
    rows = rows_of(work, listed)
    found = tables.sets(rows, work.parts, listed, ("fid256",))
    assert [(e["label"], e["alpha"]) for e in found] == [("orp", 0.0), ("orp", 0.5), ("orp", 1.0), ("plain", None)]
    for entry in found:
        of_set = [r for r, _ in rows if (r["label"], r["alpha"]) == (entry["label"], entry["alpha"])]
        assert entry["num_pictures"] == 3 and entry["bpp"] == pytest.approx(np.mean([r["bpp"] for r in of_set]))
        values = [r["psnr_db"] for r in of_set]
        assert entry["psnr_db"] == pytest.approx(np.mean(values)) and entry["ms_ssim"] is None
        low, high = entry["intervals"]["psnr_db"]
        assert min(values) <= low < entry["psnr_db"] < high <= max(values) and "ms_ssim" not in entry["intervals"]
        assert entry["fid256"] > 0 and entry["kid256"] is None
        assert entry["num_patches"] == 0 and entry["reliable"] is False
    assert "unreliable: of 0 patches of 256 pixels; FID and KID need 4096" in tables.text(found)
    monkeypatch.setattr(fid_kid, "RELIABLE_PATCHES", 0)
    assert "unreliable" not in tables.text(tables.sets(rows, work.parts, listed, ("fid256",)))
    plain = tables.sets(rows, work.parts, listed, ())
    assert all(e["fid256"] is None for e in plain) and "fid256" not in tables.text(plain)
    one = [e for e in found if e["label"] == "orp"]
    of_one = [row for row, _ in rows if row["label"] == "orp"]
    assert {"num_pictures", "bpp", "encode_s", "psnr_db_alpha_0.5", "fid256_alpha_1"} <= set(
        tables.summarise(one, of_one)
    )
    assert "plain/psnr_db" in tables.summarise(found, [row for row, _ in rows])
    curve = tables.curve_rows(one)
    assert [row["step"] for row in curve] == [0, 50, 100]
    assert set(curve[0]) == {"step", "rd/bpp", "rd/psnr_db", "rd/fid256"}
    assert [row["rd/psnr_db"] for row in curve] == [entry["psnr_db"] for entry in one]
    assert {"rd/orp/bpp", "rd/plain/bpp"} <= {name for row in tables.curve_rows(found) for name in row}


@pytest.mark.parametrize("label", ["models:/egic-orp@best", "/data/models/x y/", "..", "orp"])
def test_slugs_are_plain_file_names(label):
    name = slug(label)
    assert name and "/" not in name and not name.startswith(".") and name == slug(name)


def test_unavailable_measures_are_named_and_left_out(monkeypatch, caplog):
    def find(network, folder=""):
        if network == "vgg16":
            raise UserError("VGG16 weights could not be downloaded")
        return f"{network}.pth", {}

    monkeypatch.setattr(measures.pretrained, "find", find)
    monkeypatch.setattr(measures.importlib.util, "find_spec", lambda name: None if name == "torch_fidelity" else name)
    found = measures.find_measures()
    assert found.names == ("psnr_db", "ms_ssim", "lpips_alex") and found.sources == {"lpips_alex": "alexnet.pth"}
    left_out = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [m.split()[0] for m in left_out] == ["lpips_vgg", "dists", "fid256", "kid256"]
    assert measures.find_measures(("ms_ssim",)).names == ("psnr_db", "ms_ssim")
    with pytest.raises(ValueError, match="dists: VGG16 weights could not be downloaded; or leave it out of --metrics"):
        measures.find_measures(("dists",))
    with pytest.raises(ValueError, match="fid256: the package torch_fidelity is not installed"):
        measures.find_measures(("fid256",))


def test_list_options_are_parsed():
    options = evaluate.FoldersConfig(
        alphas="1,0, 0.5", qualities="90,10", metrics="psnr,fid,dists,fid64", weights="w", shown=0
    )
    found = options.applied(EvaluateConfig())
    assert found.qualities == (10, 90) and EvaluateConfig().qualities == (10, 30, 50, 70, 90)
    assert found.alphas == (0.0, 0.5, 1.0) and found.metrics == ("psnr_db", "fid256", "dists", "fid64")
    assert (found.weights, found.shown) == ("w", 0)
    assert evaluate.FoldersConfig().applied(EvaluateConfig(shown=7)) == EvaluateConfig(shown=7)
    for wrong, message in (
        ({"alphas": "0;1"}, "--alphas 0;1 is not a list of numbers"),
        ({"qualities": "1.5"}, "--qualities 1.5 is not a list of numbers such as 10,50,90"),
        ({"qualities": "101"}, "must be different whole numbers in 0..100"),
        ({"alphas": "2"}, r"must lie in \[0, 1\]"),
        ({"alphas": "1,1"}, "repeat themselves"),
        ({"metrics": "ssim"}, "has ssim; choose from psnr_db, ms_ssim"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.FoldersConfig(**wrong).applied(EvaluateConfig())


@pytest.mark.parametrize(
    "ref, name",
    [
        ("models:/egic-orp@best", "egic-orp@best"),
        ("models:/egic-orp/3", "egic-orp/3"),
        ("outputs/a b/orp/", "orp"),
        ("runs:/0123", "0123"),
        ("hf://owner/codec", "codec"),
    ],
)
def test_models_have_short_names(ref, name):
    assert short_name(ref) == name and evaluate.named_models([ref]) == {name: ref}
    assert evaluate.named_models([f"mine={ref}", ref]) == {"mine": ref, name: ref}


def test_a_path_may_have_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert evaluate.named_models(["lr=3", "runs/lr=4/orp"]) == {"lr=3": "lr=3", "orp": "runs/lr=4/orp"}


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "no pictures to evaluate on; give --images FOLDER"),
        (["--images", "x"], "built without a model"),
        (["--images", "x", "--model", "nowhere"], "nowhere is not a folder"),
        (["--images", "x", "--model", "a", "a"], "two models are called a: give them names, --model first="),
        (["--images", "x", "--model", "JPEG=a"], "a model cannot be called JPEG, as a codec is: --model another=a"),
        (["--images", "x", "--model", "b", "runs/mbt2018-mean"], "a model cannot be called mbt2018-mean"),
        (["--images", "x", "--model", "a/JPEG_XL"], "a model cannot be called JPEG_XL"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("egic.shipped.FOLDER", tmp_path)
    assert main.main(["evaluate", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_best_depends_on_the_lpips_backbone(monkeypatch, tmp_path):
    """LPIPS with a random backbone is smaller but meaningless, and must not replace a `best` of a real backbone."""
    bases = []
    monkeypatch.setattr(
        model_registry, "publish", lambda *a: model_registry.Artifact(run_id="", uri="", sha256="", model_version=1)
    )
    monkeypatch.setattr(model_registry, "promote_if_best", lambda *a: bases.append(a[-1]))
    monkeypatch.setattr(stage_run, "digest", lambda folder: "")
    (tmp_path / "provenance.json").write_text(json.dumps({"metrics": {"val/lpips": 0.3}}))
    for lpips in ("random", "alexnet.pth"):
        stage_run.publish(load_stage("gan"), "run", tmp_path, {"key": "", "config": {}, "lpips": lpips}, "data")
    assert bases == ["data random", "data alexnet.pth"]


def test_every_measure_has_a_column_and_its_weights():
    assert {*quality.NAMES} <= set(tables.SCHEMA.names) and measures.NAMES == tuple(METRICS)
    assert set(measures.PACKAGES) == {*quality.NETWORK_OF, *fid_kid.NAMES}
