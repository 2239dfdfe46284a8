"""One graph that explains itself: it says what the model says, and runs without PyTorch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import lficam
from lficam import export, portable
from lficam import functional as LF
from lficam.cli import main
from lficam.data.images import read_image
from lficam.data.transforms import prepare
from lficam.errors import InvalidInputError
from lficam.export import ExplainingGraph, export_model
from lficam.metrics.localization import peaks, region_boxes
from lficam.predict import explain_images

SIZE = 32


def make(method="lfi", backbone="cifar_resnet20", classes=7, **options):
    torch.manual_seed(0)
    model = lficam.create_model(backbone, method, classes, **options).eval()
    model.config.class_names = [f"class {number}" for number in range(classes)]
    model.config.preprocessing = lficam.Preprocessing(SIZE, SIZE + 4)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An LFI-CAM model and its graph as a file."""
    model = make()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    return model, path, export_model(model, path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(50, 40), (32, 90), (36, 36), (200, 100), (3, 900)]):
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize((width, height))
        smooth.save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("method", ["lfi", "abn", "plain"])
def test_the_graph_is_the_model(method):
    model = make(method)
    images = torch.randn(3, 3, SIZE, SIZE)
    found = ExplainingGraph(model, top=4)(images)
    prediction = model.explain(images)
    torch.testing.assert_close(found["logits"], prediction.logits)
    assert torch.equal(found["classes"], prediction.logits.topk(4, dim=1).indices)
    for place in range(4):
        explain = lficam.create_explainer("class_evidence", model)
        expected = explain(images, found["classes"][:, place], raw=True)
        torch.testing.assert_close(found["evidence"][:, place : place + 1], expected, rtol=1e-4, atol=1e-5)
    assert ("attention" in found) == (method != "plain")
    if method != "plain":
        torch.testing.assert_close(found["attention"], prediction.attention)


def test_pixels_are_normalised_inside_and_maps_upsampled_on_request():
    model = make()
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    found = ExplainingGraph(model, pixels=True, upsample=True)(images)
    plain = ExplainingGraph(model)(export.normalise(images, model.config.preprocessing))
    torch.testing.assert_close(found["logits"], plain["logits"])
    for name in ("evidence", "attention"):
        torch.testing.assert_close(found[name], LF.upsample(plain[name], (SIZE, SIZE)))


@pytest.mark.parametrize("options", [{}, {"pixels": True, "upsample": True}, {"dynamic_size": True, "top": 2}])
def test_onnx_runtime_says_what_pytorch_says(tmp_path, options):
    model = make("abn" if options.get("pixels") else "lfi")
    facts = export_model(model, tmp_path / "model.onnx", **options)
    assert facts["largest_difference"] < 1e-4
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    height = SIZE + 16 if options.get("dynamic_size") else SIZE
    images = torch.randint(0, 256, (5, 3, height, SIZE), dtype=torch.uint8)
    images = images if options.get("pixels") else export.normalise(images, model.config.preprocessing)
    graph = ExplainingGraph(model, options.get("top", 5), options.get("pixels", False), options.get("upsample", False))
    names = [output.name for output in session.get_outputs()]
    assert set(names) == {"logits", "classes", "evidence", "attention"}
    expected = graph(images)
    for name, values in zip(names, session.run(None, {"images": images.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(values), expected[name], rtol=1e-3, atol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_torch_export_says_the_same(tmp_path):
    model = make("plain")
    export_model(model, tmp_path / "model.pt2", "torch-export")
    extra = {"lficam": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    images = torch.randn(3, 3, SIZE, SIZE)
    torch.testing.assert_close(program(images)["evidence"], ExplainingGraph(model)(images)["evidence"])
    assert json.loads(extra["lficam"])["class_names"] == model.config.class_names


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.torture)
            for name in ("resnext50_32x4d", "seresnet18", "densenet121", "efficientnet_lite0", "mobilenetv2_050")
        ),
    ],
)
def test_families_of_timm(tmp_path, name):
    model = make(
        "plain" if name == "resnext50_32x4d" else "lfi",
        name,
        **({} if name == "resnext50_32x4d" else {"fin": "pointwise"}),
    )
    assert export_model(model, tmp_path / "model.onnx", top=1)["largest_difference"] < 1e-4


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        pytest.param("cifar_seresnet20", {}, marks=pytest.mark.torture),
        pytest.param("cifar_densenet100", {}, marks=pytest.mark.torture),
        pytest.param("cifar_resnext29_8x64d", {"fin": "uniform"}, marks=pytest.mark.torture),
        pytest.param("paper_resnet18", {"fin": "pointwise", "importance": "scores"}, marks=pytest.mark.torture),
        ("cifar_resnet20", {"fin": "first_guess"}),
        pytest.param("cifar_resnet20", {"attend_at": "stages.1"}, marks=pytest.mark.torture),
    ],
)
def test_architectures_of_the_paper(tmp_path, backbone, options):
    assert export_model(make("lfi", backbone, **options), tmp_path / "model.onnx")["largest_difference"] < 1e-4


@pytest.mark.torture
def test_a_trunk_without_evidence_gives_its_attention_alone(tmp_path):
    model = make("lfi", "mobilenetv3_small_050", fin="pointwise")
    assert export_model(model, tmp_path / "model.onnx")["evidence"] == ""
    with pytest.raises(InvalidInputError, match="neither evidence nor attention"):
        export_model(make("plain", "mobilenetv3_small_050"), tmp_path / "other.onnx")


def test_a_graph_that_says_something_else_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(
        export,
        "_run_onnx",
        lambda path: (
            lambda images: {
                name: values + (name == "logits") for name, values in ExplainingGraph(make())(images).items()
            }
        ),
    )
    with pytest.raises(InvalidInputError, match="differs from the model by"):
        export_model(make(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_not_finite_is_not_left_behind(tmp_path, monkeypatch):
    def broken(path):
        return lambda images: {
            **ExplainingGraph(make())(images),
            "attention": torch.full((len(images), 1, 8, 8), torch.nan),
        }

    monkeypatch.setattr(export, "_run_onnx", broken)
    with pytest.raises(InvalidInputError, match="the graph's attention is not finite"):
        export_model(make(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, "a graph of format onnx is a .onnx file, got model.bin"),
        ("no/model.onnx", {}, "cannot be a file"),
        ("model.onnx", {"top": 0}, "top: expected at least 1"),
        ("model.onnx", {"kind": "tflite"}, "unknown format 'tflite'"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path, name, options, message):
    with pytest.raises(InvalidInputError, match=message):
        export_model(make(), tmp_path / name, **options)


def test_predicting_without_pytorch_says_what_explain_says(exported, pictures):
    model, path, _ = exported
    files = sorted(pictures.iterdir())
    for found, expected in zip(portable.PortableModel(path).predict(files), explain_images(model, files), strict=True):
        row = expected.to_dict()
        assert list(found.row) == list(row)
        for name in ("path", "label", "map"):
            assert found.row[name] == row[name]
        assert found.row["probability"] == pytest.approx(row["probability"], abs=2e-3)
        assert [one["label"] for one in found.row["top5"]] == [one["label"] for one in row["top5"]]
        for name in ("peak", "box", "seen"):
            assert found.row[name] == pytest.approx(row[name], abs=2 * max(expected.size) / SIZE), name
        # Pillow and torchvision round differently in a resize.
        assert np.abs(found.image.transpose(2, 0, 1).astype(int) - expected.image.numpy()).max() <= 1
        np.testing.assert_allclose(found.evidence, expected.evidence[0].numpy(), atol=0.05)
        np.testing.assert_allclose(found.attention, expected.attention[0].numpy(), atol=0.05)
        drawn = np.asarray(portable.PortableModel(path).draw(found)).astype(int)
        assert drawn.shape[:2] == tuple(expected.picture().shape[1:])
        assert np.abs(drawn.transpose(2, 0, 1) - expected.picture().numpy()).mean() < 2


@pytest.mark.parametrize("cell", [(0, 0), (6, 6), (0, 6), (3, 3)])
def test_its_peak_is_the_one_of_explain(cell):
    grid = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0)) / 2
    grid[0, 0, *cell] = 1
    maps = torch.nn.functional.interpolate(grid, (224, 224), mode="bilinear", align_corners=False)
    assert portable.peak(maps[0, 0].numpy()) == pytest.approx(tuple(peaks(maps)[0].tolist()))
    assert portable.peak(np.zeros((4, 6))) == (3.0, 2.0)


def test_it_needs_neither_pytorch_nor_the_rest_of_lficam(exported, pictures, tmp_path):
    """Only the standard library, numpy, Pillow and onnxruntime are let in."""
    _, path, _ = exported
    (pictures / "broken.jpg").write_bytes(b"x")
    program = f"""
import importlib.abc, sys
class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        banned = {{"torch", "torchvision", "timm", "jsonargparse", "yaml", "rich", "matplotlib", "scipy"}}
        if root in banned or (root == "lficam" and name not in ("lficam", "lficam.__main__", "lficam.portable")):
            raise ImportError(f"{{name}} is not let in")
sys.meta_path.insert(0, Guard())
sys.argv = ["lficam", "predict", {str(path)!r}, {str(pictures)!r}, "--out", {str(tmp_path / "out")!r}]
from lficam.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    (pictures / "broken.jpg").unlink()
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("5 explained")
    assert "1 of 6 files could not be explained" in done.stderr
    assert "broken.jpg: not a picture" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert [row["label"].startswith("class ") for row in rows] == [True] * 5
    assert all((tmp_path / "out" / row["picture"]).is_file() for row in rows)


def test_the_command_line(tmp_path, capsys, pictures):
    run = make().save_pretrained(tmp_path / "run")
    assert main(["export", str(run), "--out", str(tmp_path / "model.onnx"), "--pixels", "true"]) == 0
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "model.onnx"), str(pictures), "--out", str(tmp_path / "out")]) == 0
    assert main(["predict", str(tmp_path / "model.onnx"), str(pictures), "--out", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"x", "no graph that ONNX Runtime can run")])
def test_what_is_no_exported_model(tmp_path, capsys, pictures, content, message):
    if content:
        (tmp_path / "model.onnx").write_bytes(content)
    assert main(["predict", str(tmp_path / "model.onnx"), str(pictures), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_graph_of_others_is_refused(exported, tmp_path, capsys, pictures):
    graph = onnx.load(exported[1])
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "model.onnx")
    assert main(["predict", str(tmp_path / "model.onnx"), str(pictures), "--out", str(tmp_path / "out")]) == 2
    assert "was not written by lficam export" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3), (7, 7)])
def test_maps_are_resized_as_pytorch_does(shape):
    values = torch.randn(1, 1, *shape, dtype=torch.float64)
    for size in ((7, 7), (1, 1), (20, 9)):
        found = portable.resize_map(values[0, 0].numpy(), *size)
        np.testing.assert_allclose(found, LF.upsample(values, size)[0, 0].numpy(), atol=1e-12)


def test_regions_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(50):
        heat = torch.from_numpy(rng.random((1, 1, 9, 11))).float()
        assert list(portable.region(heat[0, 0].numpy())) == region_boxes(LF.min_max(heat))[0].tolist()
    assert portable.region(np.ones((3, 4))) == (0, 0, 4, 3)


def test_what_the_network_sees_is_prepared_alike(exported, pictures):
    model, path, _ = exported
    for file in sorted(pictures.iterdir()):
        found = portable.PortableModel(path)._seen(portable.decode(file)).transpose(2, 0, 1).astype(int)
        assert np.abs(found - prepare(read_image(file), model.config.preprocessing).numpy()).max() <= 1
