"""A model on the hub and back, against a stand-in; a card with the run's own figures."""

import json

import pytest
import torch

import lficam
from lficam.cli import main
from lficam.errors import RunError
from lficam.report.card import card_files

from .hub_server import Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.address, raising=False)
    yield server
    server.shutdown()


def test_there_and_back(hub, tmp_path):
    model = lficam.create_model("cifar_resnet20", num_classes=3).eval()
    model.config.class_names = ["ant", "bee", "cat"]
    address = model.push_to_hub("user/bugs")
    assert address.startswith(f"{hub.address}/user/bugs/commit/")
    assert set(hub.repositories["user/bugs"]) == {"config.json", "model.safetensors", "README.md"}
    assert b'lficam.from_pretrained("user/bugs")' in hub.repositories["user/bugs"]["README.md"]
    back = lficam.from_pretrained("user/bugs", cache_dir=tmp_path / "cache")
    assert back.config == model.config
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not hub.unknown


def test_a_run_is_published_with_its_figures(hub, run, folder, capsys):
    assert main(["evaluate", str(run.directory), "--data", f"folder:{folder}"]) == 0
    (run.directory / "audit.json").write_text(
        json.dumps(
            {"verdicts": [{"explainer": "attention", "claim": "points", "verdict": "fails", "reason": "by 3 %"}]}
        )
    )
    assert main(["publish", str(run.directory), "user/cats"]) == 0
    assert f"{hub.address}/user/cats/commit/" in capsys.readouterr().out
    (run.directory / "audit.json").unlink()
    files = hub.repositories["user/cats"]
    assert set(files) == {"config.json", "model.safetensors", "README.md", "sample.png"}
    assert files["sample.png"].startswith(b"\x89PNG")
    text = files["README.md"].decode()
    (record,) = run.directory.glob("evaluation/*/evaluation.json")
    error = json.loads(record.read_text())["classification"]["top1_error"]["value"]
    assert f"| {error:.2%} (" in text
    assert "| attention | points | fails: by 3 % |" in text
    for name, content in files.items():  # where the pictures lie is nobody's business
        assert str(folder).encode() not in content, name
        assert str(folder).strip("/").replace("/", "-").encode() not in content, name


def test_a_card_says_what_was_not_done(run, tmp_path):
    saved = run.model.save_pretrained(tmp_path)
    (saved / "metrics.json").write_text((run.directory / "metrics.json").read_text())
    text = card_files(saved, run.model, "user/cats")["README.md"]
    assert "Not evaluated yet." in text
    assert "were not audited" in text


def test_a_directory_is_loaded_as_it_is(tmp_path):
    model = lficam.create_model("cifar_resnet20", "plain")
    assert lficam.from_pretrained(model.save_pretrained(tmp_path)).config == model.config


def test_what_the_hub_refuses_is_one_sentence(hub, tmp_path):
    model = lficam.create_model("cifar_resnet20", "plain")
    with pytest.raises(RunError, match="hub: user/nothing cannot be read or written"):
        lficam.from_pretrained("user/nothing", cache_dir=tmp_path / "cache")
    hub.refuse = True
    with pytest.raises(RunError, match="hub: user/bugs cannot be read or written"):
        model.push_to_hub("user/bugs")
    with pytest.raises(RunError, match="cannot be read or written"):
        lficam.from_pretrained("no/such/name", cache_dir=tmp_path / "cache")


def test_a_damaged_download_is_refused(hub, tmp_path):
    lficam.create_model("cifar_resnet20", "plain").push_to_hub("user/bugs")
    content = bytearray(hub.repositories["user/bugs"]["model.safetensors"])
    content[-1] ^= 1
    hub.repositories["user/bugs"]["model.safetensors"] = bytes(content)
    with pytest.raises(RunError, match="does not match its checksum"):
        lficam.from_pretrained("user/bugs", cache_dir=tmp_path / "cache")
