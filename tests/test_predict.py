"""Explanations in the pictures' own pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

import lficam
from lficam.contract import Preprocessing
from lficam.data.transforms import normalise, prepare
from lficam.errors import DataError, InvalidInputError
from lficam.predict import explain_images, find_images


def make(method="plain"):
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", method, 7)
    model.config.preprocessing = Preprocessing(16, 20)
    return model.eval()


@pytest.fixture
def picture(tmp_path):
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (40, 80, 3), dtype=torch.uint8).numpy()
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


def test_it_says_what_the_model_says(picture):
    model = make("lfi")
    (explanation,) = explain_images(model, [picture])
    image = torch.from_numpy(__import__("numpy").array(Image.open(picture))).permute(2, 0, 1)
    seen = prepare(image, model.config.preprocessing)
    assert torch.equal(explanation.image, seen)
    with torch.no_grad():
        prediction = model.explain(normalise(seen[None], model.config.preprocessing))
    probabilities = prediction.logits.softmax(dim=1)[0]
    assert explanation.label == str(int(probabilities.argmax()))
    assert explanation.probability == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert [float(name) for name, _ in explanation.top] == probabilities.topk(5).indices.tolist()
    evidence = lficam.create_explainer("class_evidence", model)(
        normalise(seen[None], model.config.preprocessing), raw=True
    )
    torch.testing.assert_close(explanation.evidence, evidence[0])
    torch.testing.assert_close(explanation.attention, prediction.attention[0])


def test_peak_and_region_lie_where_the_evidence_is(picture):
    model = make()
    # 80 x 40 becomes 40 x 20, the network sees the middle 16 x 16: (24, 4) to (56, 36) of the picture.
    hot = torch.zeros(1, 64, 4, 4)
    hot[0, :, 2, 3] = model.linear_head.weight[2] - model.linear_head.weight.mean(dim=0)
    model.forward_features = lambda images: hot
    (explanation,) = explain_images(model, [picture], class_name="2")
    assert explanation.crop == (24, 4, 56, 36)
    x, y = explanation.peak
    # The hot cell is the fourth column, third row of a 4 x 4 grid over 32 pixels.
    assert 24 + 24 <= x <= 24 + 32
    assert 4 + 16 <= y <= 4 + 24
    x1, y1, x2, y2 = explanation.region
    assert x1 <= x <= x2 <= 56
    assert y1 <= y <= y2
    assert explanation.map_name == "evidence"


def test_files_and_folders_are_found_and_broken_ones_reported(picture, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    found = find_images([tmp_path])
    assert [path.name for path in found] == ["broken.jpg", "picture.png"]
    broken, whole = explain_images(make(), found, batch_size=1)
    assert isinstance(broken, DataError)
    assert whole.path == str(picture)
    with pytest.raises(DataError, match="no such file"):
        find_images([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image files"):
        find_images([tmp_path / "empty"])


def test_doubts_are_told(picture):
    explanation = make("lfi").predict(picture)
    assert explanation.doubts()[0].startswith("The model is not sure: ")
    explanation.probability = 0.9
    explanation.evidence = -torch.ones(1, 2, 2)
    explanation.attention = torch.zeros(1, 2, 2)
    explanation.size = (3, 4)
    assert [doubt.split()[0:2] for doubt in explanation.doubts()] == [
        ["No", "place"],
        ["The", "attention"],
        ["The", "picture"],
    ]


def test_a_batch_says_what_single_pictures_say(picture):
    model = make("lfi")
    together = list(explain_images(model, [picture] * 3, batch_size=2))
    assert len(together) == 3
    assert {explanation.peak for explanation in together} == {together[0].peak}


def test_a_model_without_preprocessing_is_refused(picture):
    with pytest.raises(InvalidInputError, match="preprocessing"):
        list(explain_images(lficam.create_model("cifar_resnet20"), [picture]))


def test_predict_takes_what_people_have(picture):
    model = make("lfi")
    image = Image.open(picture)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [picture, str(picture), image, array, tensor, (array / 255).astype(np.float32), tensor.double() / 255]
    expected = model.predict(forms[0])
    assert expected.path == str(picture)
    for given, found in zip(forms, model.predict(forms), strict=True):
        assert found.label == expected.label, type(given)
        torch.testing.assert_close(found.evidence, expected.evidence)
        assert found.crop == expected.crop
    grey = model.predict(array[..., 0])
    assert grey.path == ""
    assert (grey.image[0] == grey.image[1]).all()
    assert model.predict(array, class_name="2").label == "2"
    assert not model.training


def test_maps_lie_on_the_pictures_own_pixels(picture):
    explanation = make("lfi").predict(picture)
    assert explanation.size == (40, 80)
    placed = explanation.on_picture(explanation.evidence)
    assert placed.shape == (1, 40, 80)
    # The network saw (24, 4) to (56, 36).
    inside = torch.zeros(40, 80, dtype=torch.bool)
    inside[4:36, 24:56] = True
    assert (placed[0][~inside] == 0).all()
    # Halving a bilinear enlargement by the grid gives the grid's own mean.
    torch.testing.assert_close(placed[0, 4:36, 24:56].mean(), explanation.evidence.mean(), rtol=1e-2, atol=1e-3)
    assert placed.flatten().argmax() == placed[0].flatten().argmax()
    x, y = (int(value) for value in explanation.peak)
    assert placed[0, y, x] >= 0.98 * placed.max()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 2, 5), np.uint8), r"got \(2, 2, 5\)"),
        (np.zeros((0, 2), np.uint8), r"got \(0, 2\)"),
        (np.array([["a"]]), "expected numbers"),
        (np.full((4, 4), np.nan), "NaN"),
        (7, "expected a path"),
        ("absent.png", "no such file"),
    ],
)
def test_what_is_no_picture_says_so(given, message):
    with pytest.raises(DataError, match=message):
        make().predict([given])


def test_tensors_of_every_kind_are_read_or_refused(picture):
    model = make()
    grey = torch.rand(20, 30, requires_grad=True)
    half = torch.rand(3, 20, 30).bfloat16()
    assert len(model.predict([grey, half])) == 2
    with pytest.raises(DataError, match="floats in"):
        model.predict(torch.randn(3, 20, 30))
    assert model.predict(picture, class_name=2).label == "2"
