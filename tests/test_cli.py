"""The command line as people meet it: results, and one plain sentence with exit code 2 for wrong input."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from lficam.cli import main
from lficam.report import MARKER

from .conftest import write_folder


def lficam(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    recipe = out.parent / "recipe.yaml"
    recipe.write_text("epochs: 5\nimage_size: 16\nbatch_size: 8\nmodel: {method: plain}\n")
    words = ["train", "--epochs", "1", "--data", f"folder:{folder}", "--config", str(recipe), "--out", str(out)]
    assert main([*words, "--method", "lfi", "--json", str(out.parent / "result.json")]) == 0
    return out


def test_flags_win_over_the_recipe_wherever_it_stands(trained):
    recipe = (trained / "recipe.yaml").read_text()
    assert "epochs: 1\n" in recipe
    assert "image_size: 16\n" in recipe
    assert "method: lfi\n" in recipe
    assert json.loads((trained.parent / "result.json").read_text())["epochs"] == 1


def test_evaluate_and_report(trained, folder, capsys, tmp_path):
    code, out, _ = lficam(capsys, "evaluate", trained, "--data", f"folder:{folder}", "--json", tmp_path / "e.json")
    assert code == 0
    assert "top1 error" in out
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["facts"]["pictures"] == 20
    code, _, _ = lficam(capsys, "report", trained, "--out", tmp_path / "page.html")
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.startswith(MARKER)
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org/", ""
    ).replace("http://creativecommons.org", "")
    assert page.count("data:image/png;base64,") == len(record["gallery"])
    assert main(["report", str(trained), "--out", str(tmp_path / "page.html")]) == 0


def test_explain_files_and_folders(trained, folder, capsys, tmp_path):
    Image.new("RGB", (60, 30), "red").save(tmp_path / "wide.png")
    code, out, _ = lficam(capsys, "explain", trained, tmp_path / "wide.png", folder / "test", "--out", tmp_path / "out")
    assert code == 0
    assert "21 explained" in out
    rows = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert len(rows) == 21
    first = rows[0]
    assert first["seen"] == [15, 0, 45, 30]
    assert 15 <= first["peak"][0] <= 45
    assert first["label"] in ("cat", "dog")
    assert {entry["label"] for entry in first["top5"]} == {"cat", "dog"}
    assert Image.open(tmp_path / "out" / first["picture"]).size == (3 * 224 + 2 * 4, 224)


def test_explain_another_class(trained, folder, capsys, tmp_path):
    picture = folder / "test" / "cat" / "0.png"
    assert lficam(capsys, "explain", trained, picture, "--class", "dog", "--out", tmp_path / "dog")[0] == 0
    assert json.loads((tmp_path / "dog" / "explanations.jsonl").read_text())["label"] == "dog"
    code, _, err = lficam(capsys, "explain", trained, picture, "--class", "bird", "--out", tmp_path / "bird")
    assert code == 2
    assert "cat, dog" in err


def test_a_broken_picture_costs_the_others_nothing(trained, folder, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    words = ("explain", trained, tmp_path / "broken.png", folder / "test" / "cat" / "0.png", "--out", tmp_path / "out")
    code, out, err = lficam(capsys, *words)
    assert code == 2
    assert "1 explained" in out
    assert "broken.png" in err
    assert len((tmp_path / "out" / "explanations.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "train, evaluate"),
        (["train", "--out", "{tmp}/x"], "data: no source given"),
        (["train", "--data", "folder:/absent", "--out", "{tmp}/x"], "/absent"),
        (["train", "--data", "nope", "--out", "{tmp}/x"], "unknown data source"),
        (["train", "--data", "folder:{folder}", "--epoch", "3", "--out", "{tmp}/x"], "--epoch"),
        (["train", "--data", "folder:{folder}", "--epochs", "many", "--out", "{tmp}/x"], "--epochs"),
        (["train", "--data", "folder:{folder}", "--backbone", "resnet21", "--out", "{tmp}/x"], "unknown backbone"),
        (["train", "--data", "folder:{folder}", "--method", "lif", "--out", "{tmp}/x"], "--model.method"),
        (["train", "--data", "folder:{folder}", "--config", "nope", "--out", "{tmp}/x"], "unknown recipe"),
        (["train", "--data", "folder:{folder}", "--image_size", "2", "--out", "{tmp}/x"], "at least 4 x 4"),
        (["train", "--data", "folder:{folder}", "--device", "cuda", "--devices", "64", "--out", "{tmp}/x"], "device"),
        (["train", "--data", "folder:{folder}", "--config", "{bad}/1.yaml", "--out", "{tmp}/x"], "epochs"),
        (["train", "--data", "folder:{folder}", "--config", "{bad}/2.yaml", "--out", "{tmp}/x"], "schedule"),
        (["train", "--data", "folder:{folder}", "--config", "{bad}/3.yaml", "--out", "{tmp}/x"], "mapping under model"),
        (["train", "--data", "folder:{folder}", "--config", "{bad}/4.yaml", "--out", "{tmp}/x"], "bakbone"),
        (["train", "--data", "folder:{folder}", "--config", "{bad}/5.yaml", "--out", "{tmp}/x"], "epochz"),
        (["train", "--data", "folder:{folder}", "--config", "{bad}/6.yaml", "--out", "{tmp}/x"], "YAML"),
        (["train", "--data", "folder:{folder}", "--out", "{tmp}/x", "--json", "{tmp}"], "--json"),
        (["explain", "{run}", "{folder}", "--class", "bird", "--out", "{tmp}/x"], "cat, dog"),
        (["explain", "{run}", "{bad}/1.yaml", "--out", "{tmp}/x"], "not a picture"),
        (["train", "--data", "folder:{folder}"], "out"),
        (["train", "--data", "folder:{folder}", "--out", "{folder}"], "other content"),
        (["train", "--data", "two-digits", "--out", "{tmp}/x"], "no training pictures"),
        (["evaluate", "{tmp}/absent", "--data", "folder:{folder}"], "train first"),
        (["evaluate", "{run}", "--data", "digits-in-scenes"], "at least 24"),
        (["evaluate", "{run}", "--data", "folder:{three}"], "3 classes"),
        (["explain", "{run}", "{tmp}/absent.png", "--out", "{tmp}/x"], "no such file"),
        (["explain", "{run}", "{folder}", "--out", "{folder}"], "not empty"),
        (["report", "{tmp}/absent"], "train first"),
        (["report", "{run}", "--out", "{folder}/test/cat/0.png"], "no lficam report"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(trained, folder, tmp_path, capsys, words, said):
    three = write_folder(tmp_path / "three", classes=("cat", "dog", "bird"), per_class=1)
    before = sorted(path for path in folder.rglob("*"))
    bad = tmp_path / "bad"
    bad.mkdir()
    texts = ("epochs: many", "schedule: cosine", "model: 3", "model: {bakbone: x}", "epochz: 3", "a: [")
    for number, text in enumerate(texts, start=1):
        (bad / f"{number}.yaml").write_text(text)
    places = {"bad": bad, "tmp": tmp_path, "folder": folder, "run": trained, "three": three}
    code, out, err = lficam(capsys, *(word.format(**places) for word in words))
    assert code == 2
    assert said in err
    assert err.startswith("lficam: ")
    assert len(err.strip().splitlines()) == 1
    assert "usage" not in out + err
    assert sorted(path for path in folder.rglob("*")) == before
    assert not (tmp_path / "x").exists()


def test_help_is_for_people(capsys):
    for words in ([], ["--help"]):
        code, out, _ = lficam(capsys, *words)
        assert code == 0
        assert "lficam train" in out
    code, out, _ = lficam(capsys, "train", "--help")
    assert code == 0
    assert "--config RECIPE" in out
    assert "cifar10_resnet110_lfi" in out


def test_importing_lficam_and_asking_for_help_load_nothing_heavy():
    script = (
        "import sys, lficam, lficam.cli; lficam.cli.main([]); "
        "print([name for name in ('torch', 'timm', 'pytorch_lightning', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
