"""A trained classifier gets its FIN: what starts where, what stays frozen, and what the run tells of it."""

import json
import math

import pytest
import torch

from lficam.cli import main
from lficam.contract import Preprocessing
from lficam.errors import InvalidInputError, RunError
from lficam.evaluation import top1_error
from lficam.models.factory import create_model, load
from lficam.recipes import ModelOptions
from lficam.retrofit import freeze_backbone, pretrained_classifier, start_from
from lficam.training import fit

from .conftest import small_recipe


@pytest.fixture(scope="module")
def plain_run(folder, tmp_path_factory):
    recipe = small_recipe(f"folder:{folder}", model=ModelOptions(method="plain"))
    return fit(recipe, tmp_path_factory.mktemp("retrofit") / "plain").directory


@pytest.fixture(scope="module")
def retrofitted(plain_run, folder):
    recipe = small_recipe(f"folder:{folder}", init_from=str(plain_run), freeze="backbone")
    return fit(recipe, plain_run.parent / "lfi")


def test_the_trunk_stays_and_the_head_and_fin_learn(plain_run, retrofitted):
    before, after = load(plain_run).state_dict(), retrofitted.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}
    fresh = create_model("cifar_resnet20", num_classes=2).state_dict()
    assert not torch.equal(after["fin.layers.0.weight"], fresh["fin.layers.0.weight"])


def test_the_run_tells_accuracy_before_and_after_and_the_added_time(plain_run, retrofitted, folder):
    told = json.loads((retrofitted.directory / "metrics.json").read_text())["retrofit"]
    from lficam.data.sources import load_source

    test = load_source(f"folder:{folder}", with_train=False).test
    assert told["error_before"] == top1_error(load(plain_run), test)
    assert told["error_after"] == top1_error(retrofitted.model, test)
    gained = 100 * (told["error_before"]["value"] - told["error_after"]["value"])
    assert math.isclose(told["points_gained"], gained, abs_tol=1e-3)
    assert told["latency_after_ms"] > 0
    assert told["latency_before_ms"] > 0


def test_a_frozen_backbone_is_in_eval_mode_but_for_its_last_layer():
    model = create_model("resnet18", "lfi", 3, fin="pointwise").train()
    freeze_backbone(model)
    learning = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert learning == {"backbone.fc", "fin.layers"}
    assert model.fin.training
    assert not model.backbone.training
    assert not model.backbone.bn1.training


def test_pretrained_weights_are_a_classifier_where_their_classes_are_asked_for():
    torch.manual_seed(0)
    model = create_model("resnet18", "lfi", 1000, fin="uniform")  # as with timm's weights, which are 1,000 classes
    before = pretrained_classifier(model)
    assert before.config.method == "plain"
    images = torch.randn(1, 3, 32, 32)
    model.eval()
    expected = model.backbone(images)
    with torch.no_grad():
        model.backbone.conv1.weight.zero_()
    torch.testing.assert_close(before(images), expected, rtol=1e-4, atol=1e-4)
    assert pretrained_classifier(create_model("resnet18", "lfi", 10, fin="uniform")) is None


def test_the_command_line_prints_before_and_after(plain_run, folder, tmp_path, capsys):
    words = [
        "train",
        "--data",
        f"folder:{folder}",
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "1",
        "--image_size",
        "16",
    ]
    words += ["--val_fraction", "0", "--batch_size", "8", "--init-from", str(plain_run), "--freeze", "backbone"]
    assert main(words) == 0
    assert "before and after, on the test pictures" in capsys.readouterr().out


def model_like(**changes):
    model = create_model("cifar_resnet20", num_classes=2)
    model.config.class_names = ["cat", "dog"]
    model.config.preprocessing = Preprocessing(16, 16)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def test_a_run_of_the_same_method_gives_all_its_weights(run):
    model = model_like(options=run.model.config.options)
    start_from(model, run.directory)
    stored = run.model.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    other = create_model("cifar_resnet20", num_classes=2, importance="scores")
    other.config.class_names, other.config.preprocessing = ["cat", "dog"], Preprocessing(16, 16)
    start_from(other, run.directory)
    assert torch.equal(other.backbone.fc.weight, stored["backbone.fc.weight"])
    assert not torch.equal(other.fin.layers[0].weight, stored["fin.layers.0.weight"])


def test_other_trunks_and_classes_are_refused(plain_run, tmp_path):
    assert start_from(model_like(), plain_run).config.method == "plain"
    with pytest.raises(InvalidInputError, match="has backbone cifar_resnet20, the training resnet18"):
        start_from(model_like(backbone="resnet18"), plain_run)
    with pytest.raises(InvalidInputError, match="class_names"):
        start_from(model_like(class_names=["cat", "cow"]), plain_run)
    with pytest.raises(InvalidInputError, match="num_classes 2, the training 3"):
        start_from(model_like(num_classes=3), plain_run)
    bottleneck = create_model("cifar_resnet20", num_classes=2, backbone_args={"block": "bottleneck"})
    bottleneck.config.class_names = ["cat", "dog"]
    with pytest.raises(RunError, match="other backbone_args"):
        start_from(bottleneck, plain_run)
    with pytest.raises(RunError):
        start_from(model_like(), tmp_path / "nowhere")


def test_a_run_without_preprocessing_is_given_the_trainings(plain_run, tmp_path):
    model = load(plain_run)
    model.config.preprocessing = None
    model.save_pretrained(tmp_path)
    assert start_from(model_like(), tmp_path).config.preprocessing == Preprocessing(16, 16)


def test_a_stopped_retrofit_goes_on_when_the_run_it_came_from_is_gone(plain_run, folder, tmp_path):
    import shutil

    origin = shutil.copytree(plain_run, tmp_path / "origin")
    recipe = small_recipe(f"folder:{folder}", init_from=str(origin), freeze="backbone")
    run = fit(recipe, tmp_path / "run").directory
    (run / "metrics.json").unlink()
    shutil.rmtree(origin)
    assert "retrofit" not in fit(recipe, run).metrics


def test_a_random_trunk_is_not_frozen():
    with pytest.raises(InvalidInputError, match="freeze: backbone would keep random weights"):
        small_recipe("folder:x", freeze="backbone").check()
