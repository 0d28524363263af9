"""`egic export`: the same weights, a model card that the hub can parse, and other folders are not overwritten."""

import json

import numpy as np
import pytest
import torch

import egic
from egic import artifact
from egic.cli import export, main
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from tests.codec_models import tiny_model

FACTS = {
    "stage": "orp",
    "steps": 12,
    "metrics": {"step": 12, "val/psnr_db": 28.25, "train/loss": 3.0, "val/bpp": 0.125},
}


@pytest.fixture
def folder(tmp_path):
    model = tiny_model()
    artifact.save(tmp_path / "orp", {"codec": model.codec, "orp": model.orp}, FACTS)
    return tmp_path / "orp"


def run(capsys, *arguments):
    status = main.main([str(a) for a in arguments])
    return status, capsys.readouterr()


def test_the_exported_model_codes_like_the_original(folder, tmp_path, capsys):
    status, out = run(capsys, "export", folder / "config.json", "-o", tmp_path / "deep" / "new")
    assert status == 0, out.err
    new = tmp_path / "deep" / "new"
    assert sorted(p.name for p in new.iterdir()) == sorted([*(p.name for p in folder.iterdir()), "README.md"])
    assert artifact.digest(new) == artifact.digest(folder)
    picture = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    assert egic.load(new).compress(picture) == egic.load(folder).compress(picture)
    assert [p.name for p in new.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("half", [(), ("--half",)])
def test_no_path_of_this_machine_is_exported(tmp_path, half, capsys):
    given = {"run_id": "", "uri": "/home/me/gan", "sha256": "a" * 64}
    tracked = {"run_id": "b" * 32, "uri": "models:/m-1", "sha256": "c" * 64}
    model = tiny_model()
    artifact.save(tmp_path / "orp", {"codec": model.codec}, FACTS | {"parents": {"gan": given, "mse-codec": tracked}})
    assert run(capsys, "export", tmp_path / "orp", "-o", tmp_path / "new", *half)[0] == 0
    parents = json.loads((tmp_path / "new" / "provenance.json").read_text())["parents"]
    assert parents == {"gan": given | {"uri": ""}, "mse-codec": tracked}


def test_half_precision_halves_the_files_and_codes_with_the_rounded_weights(folder, tmp_path, capsys):
    assert run(capsys, "export", folder, "-o", tmp_path / "new", "--half")[0] == 0
    sizes = [sum(p.stat().st_size for p in place.glob("*.safetensors")) for place in (folder, tmp_path / "new")]
    assert sizes[1] < 0.55 * sizes[0]
    whole, half = egic.load(folder), egic.load(tmp_path / "new")
    for name, value in whole.codec.state_dict().items():
        stored = half.codec.state_dict()[name]
        assert stored.dtype == value.dtype == torch.float32 and torch.equal(stored, value.half().float()), name
    picture = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    assert half.decompress(half.compress(picture)).shape == picture.shape
    with pytest.raises(ValueError, match="made with model"):
        whole.decompress(half.compress(picture))


def test_the_card_has_metadata_and_validation_metrics(folder, tmp_path, capsys):
    hub = pytest.importorskip("huggingface_hub")
    assert run(capsys, "export", folder, "-o", tmp_path / "new", "--license", "cc-by-4.0")[0] == 0
    card = hub.ModelCard.load(tmp_path / "new" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "egic"
    assert "image-compression" in card.data.tags and "arxiv:2309.03244" in card.data.tags
    assert "egic.load(" in card.text and "alpha=0" in card.text and artifact.digest(folder) in card.text
    assert "| PSNR (dB) | 28.25 |" in card.text and "| bpp | 0.125 |" in card.text and "train/loss" not in card.text


def test_the_card_of_a_discriminator_does_not_mention_compression():
    d = Discriminator(DiscriminatorConfig(down=(8, 8), up=(8, 8), latent_channels=64, num_categories=5))
    text = export.card({"discriminator": d}, {"stage": "segmentation", "metrics": {}}, "0" * 64, "apache-2.0")
    assert "egic.load(" not in text and "alpha" not in text and "Validation" not in text
    assert 'artifact.load(snapshot_download("USER/NAME"), "discriminator")' in text


def test_the_cards_code_runs(folder, tmp_path, monkeypatch, capsys):
    """The folder replaces the download from the hub."""
    from PIL import Image

    assert run(capsys, "export", folder, "-o", tmp_path / "new")[0] == 0
    code = (tmp_path / "new" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("from huggingface_hub import snapshot_download\n", "")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 30)).save("photo.png")
    names = {"snapshot_download": lambda name: tmp_path / "new"}
    exec(code, names)
    assert names["picture"].shape == (30, 20, 3)


def test_mistakes_are_one_line_and_change_nothing(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").touch()
    for arguments, words in (
        ((folder, "-o", photos, "--force"), "is not an EGIC model"),
        ((folder, "-o", folder), "--force overwrites"),
        ((tmp_path / "nothing", "-o", tmp_path / "new"), "no such folder"),
        ((folder, "-o", tmp_path / "new", "--license", "apache-2.0\ntags: x"), "--license"),
    ):
        status, out = run(capsys, "export", *arguments)
        assert status == 2 and words in out.err and out.err.count("\n") == 1
    (folder / "codec.safetensors").write_bytes(b"damaged")
    status, out = run(capsys, "export", folder, "-o", tmp_path / "new")
    assert status == 2 and "cannot be read" in out.err and not (tmp_path / "new").exists()
    assert (photos / "a.png").exists()
