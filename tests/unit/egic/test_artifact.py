"""Artifacts: load returns exactly what save stored; damaged and other files are errors that name the problem."""

import json
import pickle
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from egic import artifact
from egic.errors import UserError
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from egic.networks.frozen_features import digest, find
from egic.networks.orp import ResidualHead
from tests import encoders
from tests.codec_models import TINY

D_CONFIG = DiscriminatorConfig(down=(8, 8), up=(8, 8), latent_channels=64, num_categories=5)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return {"codec": Codec(TINY), "orp": ResidualHead(TINY), "discriminator": Discriminator(D_CONFIG)}


@pytest.fixture
def folder(tmp_path, parts):
    artifact.save(tmp_path / "artifact", parts, {"stage": "test"})
    return tmp_path / "artifact"


def test_round_trip(folder, parts):
    assert sorted(p.name for p in folder.iterdir()) == [
        "codec.safetensors", "config.json", "discriminator.safetensors", "orp.safetensors", "provenance.json",
    ]  # fmt: skip
    assert json.loads((folder / "provenance.json").read_text()) == {"stage": "test"}
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1, "whoever may read one file may read all"
    found = artifact.load(folder)
    assert found.keys() == parts.keys()
    for name, module in parts.items():
        assert type(found[name]) is type(module) and not found[name].training
        for (k, v), (k2, v2) in zip(module.state_dict().items(), found[name].state_dict().items(), strict=True):
            assert k == k2 and torch.equal(v, v2)
    assert found["codec"].config == TINY and found["discriminator"].config == D_CONFIG


def test_a_frozen_encoder_is_named_by_its_digest_and_not_stored(tmp_path, monkeypatch):
    file = encoders.write_weights(tmp_path / f"{encoders.NAME}.safetensors")
    weights = find(encoders.NAME, 2, str(file))
    config = replace(D_CONFIG, encoder=encoders.NAME, encoder_weights=str(file))
    model = Discriminator(config, weights).eval()
    folder = tmp_path / "artifact"
    artifact.save(folder, {"discriminator": model}, {})
    written = json.loads((folder / "config.json").read_text())["discriminator"]
    assert written["encoder_sha256"] == digest(weights) and "encoder_weights" not in written
    assert not any("encoder" in name for name in safetensors.torch.load_file(folder / "discriminator.safetensors"))
    monkeypatch.setenv("EGIC_WEIGHTS", str(tmp_path))
    x = torch.rand(1, 3, 32, 32) * 255
    for found in (artifact.load(folder), artifact.load(folder, encoder=weights)):
        assert torch.equal(found["discriminator"](x), model(x))
    encoders.write_weights(file, seed=1)
    with pytest.raises(UserError, match="needs weights of test_efficientnet with digest .* in EGIC_WEIGHTS"):
        artifact.load(folder)


def test_components_can_be_chosen(folder):
    assert list(artifact.load(folder, "discriminator")) == ["discriminator"]
    (folder / "orp.safetensors").unlink()
    with pytest.raises(ValueError, match="has no orp; it holds codec, discriminator"):
        artifact.load(folder, "codec", "orp")


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(folder, parts):
    artifact.save(folder, {"codec": parts["codec"]}, {})
    assert sorted(p.name for p in folder.iterdir()) == ["codec.safetensors", "config.json", "provenance.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["artifact"]


def test_a_failed_save_leaves_the_old_artifact(folder, parts):
    before = artifact.digest(folder)
    with pytest.raises(TypeError):
        artifact.save(folder, parts, {"no JSON": object()})
    assert artifact.digest(folder) == before and [p.name for p in folder.parent.iterdir()] == ["artifact"]


def change_tensors(folder, change):
    path = folder / "codec.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


NAME = "g_s.stages.3.resample.reduction.bias"


@pytest.mark.parametrize(
    "change",
    [lambda t: t.pop(NAME), lambda t: t.update({NAME: torch.zeros(5)}), lambda t: t.update({NAME + "2": t.pop(NAME)})],
    ids=["missing", "misshaped", "renamed"],
)
def test_weights_that_do_not_fit_are_named(folder, change):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=rf"codec\.safetensors does not fit its config\.json: .*{NAME}"):
        artifact.load(folder, "codec")


def test_surplus_weights_are_named(folder):
    change_tensors(folder, lambda t: t.update({"a.b": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"does not fit its config\.json: a\.b \(1 in all\)"):
        artifact.load(folder, "codec")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 64 + b[64:]])
def test_damaged_weights_are_an_error(folder, damage):
    path = folder / "codec.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"codec\.safetensors cannot be read .*download the artifact again"):
        artifact.load(folder)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_a_pickle_is_never_loaded(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "codec.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="cannot be read"):
        artifact.load(folder)
    torch.save(Trap(), folder / "codec.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        artifact.load(folder)
    assert not (folder.parent / "trapped").exists()


def change_config(folder, change):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["codec"].update(depth=3), r"codec: unknown keys \['depth'\]"),
        (lambda c: c.update(vae={}), r"unknown keys \['vae'\]"),
        (lambda c: c.update(codec=[1]), "codec: not a JSON object"),
        (lambda c: c["codec"].update(window="8"), r"window has the wrong type \('8'\)"),
        (lambda c: c["codec"].update(window=True), "window has the wrong type"),
        (lambda c: c["codec"].update(dims=[32, 32, 64, 64.0]), "dims has the wrong type"),
        (lambda c: c["codec"].update(dims=[32, 32, 64, 65]), "multiples of 32"),
        (lambda c: c.update(format=2), "reads format 1 only"),
        (lambda c: c.pop("format"), "reads format 1 only"),
    ],
)
def test_invalid_configs_are_refused(folder, change, message):
    change_config(folder, change)
    with pytest.raises(ValueError, match=message):
        artifact.load(folder)


def test_a_folder_without_config_is_not_a_model(tmp_path, folder):
    with pytest.raises(ValueError, match=r"is not an EGIC model: it has no config\.json"):
        artifact.load(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        artifact.load(folder)


def test_the_digest_covers_weights_and_config_but_not_provenance(tmp_path, parts):
    one = artifact.save(tmp_path / "one", parts, {"run": 1})
    two = artifact.save(tmp_path / "two", parts, {"run": 2, "more": "facts"})
    assert one == two == artifact.digest(tmp_path / "one") and len(one) == 64
    change_config(tmp_path / "one", lambda c: c["codec"].update(window=8))
    assert artifact.digest(tmp_path / "one") != two
    path = tmp_path / "two" / "orp.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = artifact.digest(tmp_path / "two")
    assert changed != two
    path.rename(path.with_name("discriminator2.safetensors"))
    assert artifact.digest(tmp_path / "two") not in (two, changed)
