"""Anyone's network behind the contract: its answers to the bit, its evidence at once, and errors that help."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import lficam
from lficam.contract import ExplainableClassifier
from lficam.errors import InvalidInputError, RunError, UnknownNameError

images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def network(num_classes=5, width=8):
    """A factory, as ``tests.models.test_wrapped:network`` names it."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(width, num_classes),
    )


class WithTimmsMethods(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc, self.num_features = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, num_classes), 6

    def forward_features(self, images):
        return self.conv(images).relu()

    def forward_head(self, features):
        return self.fc(features.mean((2, 3)))

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def one_class_too_many(num_classes):
    return network(num_classes + 1)


def no_network(num_classes):
    return [num_classes]


HERE = __name__
WRAPPED = {
    "resnet": (lambda: torchvision.models.resnet18(num_classes=5), "layer4", True),
    "densenet behind its last relu": (lambda: torchvision.models.densenet121(num_classes=5), "relu", True),
    "densenet before it": (lambda: torchvision.models.densenet121(num_classes=5), "features", False),
    "mobilenet v2": (lambda: torchvision.models.mobilenet_v2(num_classes=5), "features", True),
    "vgg": (lambda: torchvision.models.vgg11(num_classes=5), "features", False),
    "sequential": (network, "2", True),
}


@pytest.fixture(scope="module", params=WRAPPED)
def case(request):
    torch.manual_seed(0)
    make, stage, exact = WRAPPED[request.param]
    return make().eval(), stage, exact


def test_a_plain_wrap_changes_nothing_and_explains(case):
    classifier, stage, exact = case
    model = lficam.wrap(classifier, features=stage, image_size=64)
    assert isinstance(model, ExplainableClassifier)
    assert not model.training
    with torch.no_grad():
        prediction = model.explain(images, class_idx=3)
        assert torch.equal(model(images), classifier(images))
        assert torch.equal(prediction.logits, classifier(images))
    assert (model.linear_head is not None) == (prediction.evidence is not None) == exact
    if exact:
        total = prediction.evidence.mean(dim=(1, 2, 3)) + model.linear_head.bias[3]
        torch.testing.assert_close(total, prediction.logits[:, 3], rtol=1e-4, atol=1e-4)
        assert lficam.create_explainer("cam", model)(images).shape == (2, 1, 64, 96)
    else:
        with pytest.raises(InvalidInputError, match=r"network\.classifier"):
            lficam.create_explainer("cam", model)
    assert lficam.create_explainer("grad_cam", model)(images).shape == (2, 1, 64, 96)


def test_a_feature_importance_network_is_added_and_trains(case):
    classifier, stage, _ = case
    model = lficam.wrap(classifier, features=stage, method="lfi", image_size=64, fin="pointwise").train()
    prediction = model.explain(images)
    prediction.logits.square().sum().backward()
    assert prediction.attention.shape[1] == 1
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    names = [id(parameter) for parameter in model.parameters()]
    assert len(names) == len(set(names))
    classifier.eval()


def test_two_functions_in_place_of_a_stage():
    classifier = torchvision.models.resnet18(num_classes=5).eval()
    trunk = nn.Sequential(*list(classifier.children())[:-2])
    model = lficam.wrap(classifier, trunk, lambda features: classifier.fc(features.mean((2, 3))), image_size=64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), classifier(images))
    assert model.linear_head is classifier.fc
    assert set(model.state_dict()) == {f"backbone.network.{name}" for name in classifier.state_dict()}
    with pytest.raises(InvalidInputError, match=r"attend_at.*two functions"):
        lficam.wrap(
            classifier, trunk, lambda f: classifier.fc(f.mean((2, 3))), "lfi", 64, fin="uniform", attend_at="layer3"
        )


def test_modes_and_copies_are_respected():
    classifier = network().train()
    classifier[1].eval()
    model = lficam.wrap(classifier, "2", method="lfi", image_size=16, fin="pointwise")
    assert model.training
    assert model.fin.training
    assert not classifier[1].training
    model.eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        classifier[0].weight.zero_()
        assert not torch.equal(other(images), model(images))


def test_attention_at_an_earlier_stage():
    classifier = torchvision.models.resnet18(num_classes=5).eval()
    model = lficam.wrap(classifier, "layer4", method="lfi", image_size=64, fin="uniform", attend_at="layer2").eval()
    assert model.explain(images).attention.shape == (2, 1, 2, 3)


def test_saved_and_loaded_with_the_network_given_again(tmp_path):
    model = lficam.wrap(network(), "2", method="lfi", image_size=16, class_names=list("abcde"), fin="pointwise").eval()
    model.save_pretrained(tmp_path)
    for given in (network(), f"{HERE}:network"):
        loaded = lficam.load(tmp_path, model=given)
        assert torch.equal(loaded(images), model(images))
        assert loaded.config == model.config
    with pytest.raises(RunError, match=r"not run unasked.*--model"):
        lficam.load(tmp_path)
    with pytest.raises(InvalidInputError, match="6 classes, the run 5"):
        lficam.load(tmp_path, model=network(6))
    with pytest.raises(RunError, match="another model"):
        lficam.load(tmp_path, model=network(width=4))
    lficam.create_model("cifar_resnet20").save_pretrained(tmp_path / "ours")
    with pytest.raises(InvalidInputError, match="which lficam makes itself"):
        lficam.load(tmp_path / "ours", model=network())


def test_saved_and_loaded_as_two_functions(tmp_path):
    classifier = network().eval()
    parts = (classifier[:3], classifier[3:])
    lficam.wrap(classifier, *parts, image_size=16).save_pretrained(tmp_path)
    other = network().eval()
    assert torch.equal(lficam.load(tmp_path, other, other[:3], other[3:])(images), classifier(images))
    with pytest.raises(InvalidInputError, match="two functions"):
        lficam.load(tmp_path, other)


def test_a_factory_by_name_makes_a_trunk():
    arguments = {"features": "2", "image_size": 16, "width": 4}
    model = lficam.create_model(f"{HERE}:network", "lfi", 7, arguments, fin="uniform").eval()
    assert model.explain(images).importance.shape == (2, 4)
    model = lficam.create_model(f"{HERE}:WithTimmsMethods", "plain", 7, {"image_size": 16}).eval()
    assert model.explain(images).evidence.shape == (2, 1, 16, 24)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no_such_module:make", {}, "cannot be imported"),
        (f"{HERE}:nothing", {}, "cannot be imported"),
        (f"{HERE}:HERE", {}, "is a str, not a factory"),
        (f"{HERE}:no_network", {}, "gave a list"),
        (f"{HERE}:network", {"depth": 3}, "did not take"),
        (f"{HERE}:network", {}, "name its last stage"),
        (f"{HERE}:network", {"features": "9", "image_size": 16}, "unknown stage '9'"),
        (f"{HERE}:one_class_too_many", {"features": "2", "image_size": 16}, "gives 8 classes, asked for 7"),
    ],
)
def test_a_factory_that_is_none_says_so(name, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        lficam.create_model(name, "plain", 7, arguments)


def test_pretrained_is_the_factorys_own_business():
    with pytest.raises(InvalidInputError, match="let it load its weights itself"):
        lficam.create_model(f"{HERE}:network", "plain", 7, pretrained=True)


@pytest.mark.parametrize(
    ("classifier", "features", "message"),
    [
        ("resnet18", "2", "expected a torch.nn.Module"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), "0", r"expected logits \(N, C\), got \(2, 4, 16, 16\)"),
        (network(), "4", r"expected a map \(N, K, h, w\), got \(2, 8\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(100, 3)), "0", "give its image_size"),
        (network(), "9", "unknown stage"),
        (network(), lambda images: images, "head: expected a function"),
    ],
)
def test_what_cannot_be_wrapped_says_why(classifier, features, message):
    with pytest.raises(InvalidInputError, match=message):
        lficam.wrap(classifier, features, image_size=16)


def test_functions_that_are_not_the_network_and_wrong_names_are_refused():
    classifier = network()
    with pytest.raises(InvalidInputError, match="do not give what the classifier gives"):
        lficam.wrap(classifier, classifier[:3], lambda features: classifier[3:](features) + 1, image_size=16)
    with pytest.raises(InvalidInputError, match="class_names: expected 5 names"):
        lficam.wrap(classifier, "2", image_size=16, class_names=["a"])
    with pytest.raises(InvalidInputError, match="abn needs a trunk of stages"):
        lficam.wrap(classifier, "2", method="abn", image_size=16)
    with pytest.raises(UnknownNameError, match="method"):
        lficam.wrap(classifier, "2", method="cam", image_size=16)


class Twice(nn.Module):
    """One layer called at two places, and another that is never called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3), nn.ReLU()
        self.fc, self.unused = nn.Linear(4, 5), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


def test_a_layer_called_twice_is_cut_at_its_last_call():
    model = lficam.wrap(Twice().eval(), "relu", image_size=16)
    assert model.linear_head is not None
    assert model.forward_features(images).shape == (2, 4, 29, 45)


def test_what_the_method_adds_has_the_type_of_the_classifier():
    model = lficam.wrap(network().double().eval(), "2", method="lfi", image_size=16, fin="pointwise")
    assert model.explain(images.double()).logits.dtype == torch.float64


def test_a_single_logit_can_be_wrapped():
    model = lficam.wrap(network(1).eval(), "2", image_size=16)
    assert lficam.create_explainer("class_evidence", model)(images, 0).shape == (2, 1, 64, 96)


def test_a_run_of_a_factory_is_loaded_with_a_network_too(tmp_path):
    class Small(WithTimmsMethods):
        pass

    model = lficam.create_model(f"{HERE}:WithTimmsMethods", "plain", 7).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(lficam.load(tmp_path, Small(7))(images), model(images))


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_a_configuration_cannot_make_timm_read_files(argument):
    with pytest.raises(InvalidInputError, match=f"backbone_args: {argument} is not taken"):
        lficam.create_model("resnet18", "plain", 7, {argument: "somewhere"})
