"""Evaluation without Ray: pictures to parts, parts to tables, and what the command line refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egic.cli import main
from egic.errors import UserError
from egic.metrics import fid_kid, quality
from egic.metrics.quality import Quality
from jobs import evaluate
from jobs.config.schema import EvaluateConfig
from jobs.evaluation import measures, tables
from jobs.evaluation.parts import Coder, Parts, first_readable, of_folders
from jobs.tracking import model_registry
from jobs.training import reuse_or_train as stage_run
from jobs.training.stage import load_stage
from tests.codec_models import tiny_model

ALPHAS = (0.0, 0.5, 1.0)
MODELS = {"orp": "a" * 64, "plain": "b" * 64}


@pytest.fixture(scope="module")
def models() -> dict:
    return {MODELS["orp"]: tiny_model(0), MODELS["plain"]: tiny_model(1, orp=False)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, one of which is cut short."""
    rng, place = np.random.default_rng(0), tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for name, size in (("a.png", (40, 50)), ("b.png", (33, 64)), ("more/c.png", (48, 48)), ("broken.png", (40, 40))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / name)
    (place / "broken.png").write_bytes((place / "broken.png").read_bytes()[:900])
    (place / "notes.txt").write_text("no picture")
    return place


def fake_features(x: np.ndarray) -> np.ndarray:
    """Two 'patches' a picture, whose features are its mean and spread."""
    return np.array([[x.mean(), x.std()], [x.std(), x.mean()]], np.float32)


def coder(models: dict, place: Path, shown=frozenset(), features=fake_features) -> Coder:
    return Coder(
        models=models, quality=Quality(["psnr_db", "ms_ssim"], {}), features=features, parts=Parts(folder=place),
        alphas=ALPHAS, shown=frozenset(shown),
    )  # fmt: skip


def without_times(table) -> bytes:
    return table.drop_columns(["encode_s", "decode_s"]).to_pylist()


def test_pictures_are_listed_by_name(folder, tmp_path):
    listed, skipped = of_folders([str(folder)])
    assert [p.name for p in listed] == ["a.png", "b.png", "broken.png", "more/c.png"] and not skipped
    assert [p.name for p in of_folders([str(folder / "b.png")])[0]] == ["b.png"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((folder / "b.png").read_bytes())
    names = [p.name for p in of_folders([str(folder), str(other)])[0]]
    assert names == ["b.png", "broken.png", "more/c.png", "other/a.png", "pictures/a.png"]
    (folder / "gone.png").symlink_to("nowhere")  # listed by rglob, but no file
    assert len(of_folders([str(folder)])[0]) == 4
    for places, message in (
        (["nowhere"], "--images nowhere does not exist"),
        ([str(folder), str(folder)], "has pictures/a.png twice"),
    ):
        with pytest.raises(ValueError, match=message):
            of_folders(places)


def test_rows_count_the_bits_of_real_files(folder, models, tmp_path):
    listed, _ = of_folders([str(folder)])
    work = coder(models, tmp_path / "parts", shown=["a.png"])
    reasons = {p.name: work(p) for p in listed}
    assert reasons.pop("broken.png").startswith("damaged picture") and set(reasons.values()) == {""}
    good = [p for p in listed if p.name in reasons]
    table = tables.rows_table(work.parts, MODELS, good[::-1])
    rows = table.to_pylist()
    assert table.schema.equals(tables.SCHEMA) and len(rows) == 3 * (len(ALPHAS) + 1)
    assert rows == sorted(rows, key=lambda r: (r["label"], r["name"], r["alpha"]))
    for row in rows:
        x = good[[p.name for p in good].index(row["name"])].read()
        data = models[row["model_digest"]].compress(x)
        assert (row["height"], row["width"]) == x.shape[:2] and row["bytes"] == len(data)
        assert row["bpp"] == 8 * len(data) / (row["height"] * row["width"])
        model = models[row["model_digest"]]
        x_hat = model.decompress(data, row["alpha"] if model.orp else None)
        mse = ((x_hat.astype(float) - x) ** 2).mean()
        assert row["psnr_db"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
        assert row["ms_ssim"] is None and row["lpips_vgg"] is None
        assert row["point"] == f"alpha {row['alpha']:g}"
    assert {r["alpha"] for r in rows if r["label"] == "plain"} == {1.0}

    shown = first_readable(listed, 1, None)
    tables.write_shown(tmp_path / "out", table, work.parts, shown, [p.read() for p in shown])
    made = sorted(p.name for p in (tmp_path / "out" / "pictures" / "a").iterdir())
    assert made == ["original.png", "orp_alpha_0.5.png", "orp_alpha_0.png", "orp_alpha_1.png", "plain_alpha_1.png"]
    assert (np.asarray(Image.open(tmp_path / "out/pictures/a/original.png")) == shown[0].read()).all()
    x = shown[0].read()
    model = models[MODELS["orp"]]
    kept = np.asarray(Image.open(tmp_path / "out/pictures/a/orp_alpha_0.5.png"))
    assert (kept == model.decompress(model.compress(x), 0.5)).all()
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_a_killed_run_goes_on_and_codes_nothing_twice(folder, models, tmp_path, monkeypatch):
    listed = [p for p in of_folders([str(folder)])[0] if p.name != "broken.png"]
    for picture in listed:
        coder(models, tmp_path / "whole")(picture)
    whole = tables.rows_table(Parts(folder=tmp_path / "whole"), MODELS, listed)

    coded, code = [], Coder.code

    def killed(self, digest, model, picture, x, shown):
        if len(coded) == 3:
            raise KeyboardInterrupt
        coded.append((digest, picture.name))
        code(self, digest, model, picture, x, shown)

    monkeypatch.setattr(Coder, "code", killed)
    with pytest.raises(KeyboardInterrupt):
        for picture in listed:
            coder(models, tmp_path / "cut")(picture)
    monkeypatch.setattr(Coder, "code", code)
    first = {p: p.read_bytes() for p in (tmp_path / "cut").rglob("*.json")}
    assert len(first) == 3
    again = []
    monkeypatch.setattr(
        Coder, "code", lambda self, d, m, p, x, s: again.append((d, p.name)) or code(self, d, m, p, x, s)
    )
    for picture in listed:
        assert coder(models, tmp_path / "cut")(picture) == ""
    assert len(again) == 3 and not set(again) & set(coded)
    assert all(path.read_bytes() == content for path, content in first.items())
    parts = Parts(folder=tmp_path / "cut")
    assert without_times(tables.rows_table(parts, MODELS, listed)) == without_times(whole)
    found = [tables.set_rows(whole, p, listed, fid_kid.NAMES) for p in (parts, Parts(folder=tmp_path / "whole"))]
    assert found[0] == found[1]


def test_a_picture_that_is_shown_needs_its_pngs(folder, models, tmp_path):
    picture = of_folders([str(folder / "a.png")])[0][0]
    work, digest = coder(models, tmp_path), MODELS["orp"]
    work(picture)
    assert work.parts.is_done(digest, picture, shown=False) and not work.parts.is_done(digest, picture, shown=True)
    coder(models, tmp_path, shown=["a.png"])(picture)
    assert work.parts.is_done(digest, picture, shown=True)


def test_sets_are_means_and_say_when_they_are_unreliable(folder, models, tmp_path, monkeypatch):
    listed = [p for p in of_folders([str(folder)])[0] if p.name != "broken.png"]
    work = coder(models, tmp_path)
    for picture in listed:
        work(picture)
    table = tables.rows_table(work.parts, MODELS, listed)
    found = tables.set_rows(table, work.parts, listed, ("fid256",))
    assert [(e["label"], e["alpha"]) for e in found] == [("orp", 0.0), ("orp", 0.5), ("orp", 1.0), ("plain", 1.0)]
    for entry in found:
        of_set = [r for r in table.to_pylist() if (r["label"], r["alpha"]) == (entry["label"], entry["alpha"])]
        assert entry["num_pictures"] == 3 and entry["bpp"] == np.mean([r["bpp"] for r in of_set])
        assert entry["psnr_db"] == np.mean([r["psnr_db"] for r in of_set]) and entry["ms_ssim"] is None
        assert entry["fid256"] > 0 and entry["kid256"] is None
        assert entry["num_patches"] == 0 and entry["reliable"] is False
    assert "unreliable: of 0 patches; FID and KID need 5000" in tables.text(found) and "*" in tables.text(found)
    monkeypatch.setattr(fid_kid, "RELIABLE_PATCHES", 0)
    assert "unreliable" not in tables.text(tables.set_rows(table, work.parts, listed, ("fid256",)))
    plain = tables.set_rows(table, work.parts, listed, ())
    assert all(e["fid256"] is None for e in plain) and "fid256" not in tables.text(plain)
    one = [e for e in found if e["label"] == "orp"]
    assert {"num_pictures", "bpp", "encode_s", "psnr_db_alpha_0.5", "fid256_alpha_1"} <= set(
        tables.summarise(table, one)
    )
    assert "plain/psnr_db_alpha_1" in tables.summarise(table, found)
    rows = tables.curve_rows(one)
    assert [row["step"] for row in rows] == [0, 50, 100]
    assert set(rows[0]) == {"step", "rd/bpp", "rd/psnr_db", "rd/fid256"}
    assert [row["rd/psnr_db"] for row in rows] == [entry["psnr_db"] for entry in one]
    assert {"rd/orp/bpp", "rd/plain/bpp"} <= {name for row in tables.curve_rows(found) for name in row}


@pytest.mark.parametrize("label", ["models:/egic-orp@best", "/data/models/x y/", "..", "orp"])
def test_slugs_are_plain_file_names(label):
    name = tables.slug(label)
    assert name and "/" not in name and not name.startswith(".") and name == tables.slug(name)


def test_measures_that_cannot_be_had_are_named_and_left_out(monkeypatch, caplog):
    def find(network, folder):
        if network == "vgg16":
            raise UserError("VGG16 weights could not be downloaded")
        return f"{network}.pth", {}

    monkeypatch.setattr(measures.pretrained, "find", find)
    monkeypatch.setattr(measures.importlib.util, "find_spec", lambda name: None if name == "torch_fidelity" else name)
    found = measures.find_measures(EvaluateConfig())
    assert found.names == ("psnr_db", "ms_ssim", "lpips_alex") and found.sources == {"lpips_alex": "alexnet.pth"}
    left_out = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [m.split()[0] for m in left_out] == ["lpips_vgg", "dists", "fid256", "kid256"]
    assert measures.find_measures(EvaluateConfig(metrics=("ms_ssim",))).names == ("psnr_db", "ms_ssim")
    with pytest.raises(ValueError, match="dists: VGG16 weights could not be downloaded; or leave it out of --metrics"):
        measures.find_measures(EvaluateConfig(metrics=("dists",)))
    with pytest.raises(ValueError, match="fid256: the package torch_fidelity is not installed"):
        measures.find_measures(EvaluateConfig(metrics=("fid256",)))


def test_options_are_short_lists():
    options = evaluate.FoldersConfig(alphas="1,0, 0.5", metrics="psnr,fid,dists", weights="w", shown=0)
    found = options.applied(EvaluateConfig())
    assert found.alphas == (0.0, 0.5, 1.0) and found.metrics == ("psnr_db", "fid256", "dists")
    assert (found.weights, found.shown) == ("w", 0)
    assert evaluate.FoldersConfig().applied(EvaluateConfig(shown=7)) == EvaluateConfig(shown=7)
    for wrong, message in (
        ({"alphas": "0;1"}, "--alphas 0;1 is no list of numbers"),
        ({"alphas": "2"}, r"must lie in \[0, 1\]"),
        ({"alphas": "1,1"}, "repeat themselves"),
        ({"metrics": "ssim"}, "has ssim; choose from psnr_db, ms_ssim"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.FoldersConfig(**wrong).applied(EvaluateConfig())


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "no pictures to evaluate on; give --images FOLDER"),
        (["--images", "x"], "no model to evaluate"),
        (["--images", "x", "--model", "nowhere"], "nowhere is no folder"),
        (["--images", "x", "--model", "a", "a"], "--model names one model twice: a a"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args, message, capsys):
    assert main.main(["evaluate", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_best_is_judged_by_the_backbone_too(monkeypatch, tmp_path):
    """LPIPS of a random backbone is smaller, and means nothing: it must not take `best` from a real one."""
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


def test_every_measure_has_a_column_and_a_weight():
    assert {*quality.NAMES} <= set(tables.SCHEMA.names) and {*quality.NAMES, *fid_kid.NAMES} <= set(tables.COLUMNS)
    assert set(measures.PACKAGES) == {*quality.NETWORK_OF, *fid_kid.NAMES}
