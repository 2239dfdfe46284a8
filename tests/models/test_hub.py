"""A saved model comes back whole, or says why it does not."""

import json

import pytest
import torch

import lficam
from lficam.contract import Preprocessing
from lficam.errors import RunError


@pytest.fixture
def saved(tmp_path):
    model = lficam.create_model("cifar_resnet20", method="lfi", num_classes=3)
    model.config.class_names = ["a", "b", "c"]
    model.config.preprocessing = Preprocessing(24, 32)
    return model.save_pretrained(tmp_path / "model")


def test_the_configuration_comes_back(saved):
    model = lficam.load(saved)
    assert model.config.preprocessing == Preprocessing(24, 32)
    assert model.config.label(1) == "b"
    config = json.loads((saved / "config.json").read_text())
    assert config["lficam_version"] == lficam.__version__
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_flipped_bit_is_found(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="checksum"):
        lficam.load(saved)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "train first"),
        (lambda d: (d / "config.json").write_text("{"), "damaged"),
        (lambda d: (d / "config.json").write_text("[]"), "damaged"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "checksum"),
    ],
)
def test_damage_is_one_plain_sentence(saved, damage, message):
    damage(saved)
    with pytest.raises(RunError, match=message):
        lficam.load(saved)


def test_weights_of_another_model_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["num_classes"] = 4
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="another model"):
        lficam.load(saved)


def test_saving_twice_replaces(saved):
    other = lficam.create_model("cifar_resnet20", method="plain")
    other.save_pretrained(saved)
    assert lficam.load(saved).config.method == "plain"
    assert torch.equal(lficam.load(saved).backbone.fc.weight, other.backbone.fc.weight)


def test_what_a_later_version_wrote_says_so(tmp_path):
    saved = lficam.create_model("cifar_resnet20", "plain").save_pretrained(tmp_path)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "lficam_version": "12.0.1", "fovea": 3}))
    with pytest.raises(RunError, match=r"written by lficam 12.0.1, this is .*: upgrade"):
        lficam.load(saved)
