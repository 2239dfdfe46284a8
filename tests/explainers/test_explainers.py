"""One contract suite for all explainers, and each against a peer library or a slow rewrite."""

import pytest
import torch
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam.methods import CAM as PeerCAM

import lficam
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.explainers import EXPLAINERS, create_explainer

CLASSES = 7
METHODS = ("plain", "lfi", "abn")


def make(method, backbone="cifar_resnet20"):
    torch.manual_seed(0)
    model = lficam.create_model(backbone, method, CLASSES)
    for module in model.modules():  # statistics and scales unlike those of a fresh net
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {method: make(method) for method in METHODS}


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(1))


CASES = [
    pytest.param(name, method, id=f"{name}-{method}")
    for name in EXPLAINERS
    for method in METHODS
    if (name, method) != ("attention", "plain")
]


@pytest.mark.parametrize(("name", "method"), CASES)
class TestContract:
    def test_maps_are_finite_and_of_input_size_in_the_unit_interval(self, models, images, name, method):
        maps = create_explainer(name, models[method])(images)
        assert maps.shape == (4, 1, 16, 24)
        assert maps.amin(dim=(1, 2, 3)).tolist() == [0.0] * 4
        assert set(maps.amax(dim=(1, 2, 3)).tolist()) <= {0.0, 1.0}
        assert not maps.requires_grad

    def test_a_map_does_not_depend_on_its_batch(self, models, images, name, method):
        explain = create_explainer(name, models[method])
        one_by_one = torch.cat([explain(image[None]) for image in images])
        torch.testing.assert_close(one_by_one, explain(images), rtol=1e-4, atol=1e-4)

    def test_the_model_is_left_as_it_was(self, models, images, name, method):
        model = models[method]
        model.train()
        frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        frozen.eval()
        next(model.parameters()).requires_grad_(False)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        random = torch.get_rng_state()
        try:
            create_explainer(name, model)(images)
            assert model.training
            assert not frozen.training
            assert not next(model.parameters()).requires_grad
            assert all(parameter.grad is None for parameter in model.parameters())
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
            assert torch.equal(torch.get_rng_state(), random)
            assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        finally:
            next(model.parameters()).requires_grad_(True)
            model.eval()

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_it_works_without_gradients_around(self, models, images, name, method, context):
        expected = create_explainer(name, models[method])(images)
        with context():
            found = create_explainer(name, models[method])(images.clone())
        torch.testing.assert_close(found.clone(), expected)

    def test_flat_features_give_a_flat_zero_map(self, models, name, method):
        if name in ("centre", "attention"):
            pytest.skip("they do not come from the last features alone")
        model = models[method]
        original = model.forward_features
        model.forward_features = lambda images: torch.full((len(images), 64, 4, 6), 0.5)
        try:
            assert (create_explainer(name, model)(torch.zeros(2, 3, 16, 24)) == 0).all()
        finally:
            model.forward_features = original

    def test_a_grid_of_one_cell(self, models, name, method):
        assert torch.isfinite(create_explainer(name, models[method])(torch.randn(2, 3, 4, 4))).all()

    def test_the_class_is_respected_or_refused(self, models, images, name, method):
        explain = create_explainer(name, models[method])
        if not explain.class_targeted:
            with pytest.raises(InvalidInputError, match="one map whatever the class"):
                explain(images, 2)
            return
        raw = explain(images, 2, raw=True)
        torch.testing.assert_close(explain(images, [2] * 4, raw=True), raw)
        assert not torch.allclose(explain(images, 3, raw=True), raw)
        predicted = models[method](images).argmax(dim=1)
        torch.testing.assert_close(explain(images, raw=True), explain(images, predicted, raw=True))
        with pytest.raises(InvalidInputError, match="expected 0 to 6"):
            explain(images, CLASSES)


def test_cam_is_torchcams_after_a_relu(models, images):
    model = models["plain"].backbone
    with PeerCAM(model, target_layer="stages", fc_layer="fc") as peer, torch.no_grad():
        model(images)
        (expected,) = peer([3] * 4, normalized=False)
    found = create_explainer("cam", models["plain"])(images, 3, raw=True)[:, 0]
    torch.testing.assert_close(found, expected.relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_grad_cam_is_pytorch_grad_cams(models, images, method):
    model = models[method]
    layer = model.backbone.stages[2]
    with PeerGradCAM(model, [layer]) as peer:
        peer(images, [ClassifierOutputTarget(3)] * 4)
        activations = peer.activations_and_grads.activations[0].numpy()
        gradients = peer.activations_and_grads.gradients[0].numpy()
        weights = peer.get_cam_weights(images, layer, None, activations, gradients)
    expected = torch.from_numpy((weights[:, :, None, None] * activations).sum(axis=1)).relu()
    found = create_explainer("grad_cam", model)(images, 3, raw=True)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_grad_cam_of_a_plain_net_is_cam_over_the_number_of_cells(models, images):
    cam = create_explainer("cam", models["plain"])(images, 3, raw=True)
    grad_cam = create_explainer("grad_cam", models["plain"])(images, 3, raw=True)
    torch.testing.assert_close(grad_cam * 24, cam, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_evidence_is_the_logit_in_space(models, images, method):
    model = models[method]
    head = model.linear_head
    logits = model(images)
    plain = create_explainer("class_evidence", model, centred=False)(images, 3, raw=True)
    torch.testing.assert_close(plain.mean(dim=(1, 2, 3)) + head.bias[3], logits[:, 3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, model.explain(images, 3).evidence)
    versus = create_explainer("class_evidence", model, versus=5)(images, 3, raw=True)
    margin = logits[:, 3] - logits[:, 5] - (head.bias[3] - head.bias[5])
    torch.testing.assert_close(versus.mean(dim=(1, 2, 3)), margin, rtol=1e-4, atol=1e-5)


def test_a_normalised_evidence_map_keeps_what_speaks_for_the_class(models, images):
    explain = create_explainer("class_evidence", models["plain"], versus=5)
    raw = torch.nn.functional.interpolate(explain(images, 3, raw=True).relu(), size=(16, 24), mode="bilinear")
    torch.testing.assert_close(explain(images, 3), raw / raw.amax(dim=(1, 2, 3), keepdim=True), rtol=1e-4, atol=1e-5)
    assert (explain(images, 3, raw=True) < 0).any()


def test_centred_evidence_ignores_a_shift_common_to_all_classes(models, images):
    model = make("plain")
    before = create_explainer("class_evidence", model)(images, 3, raw=True)
    with torch.no_grad():
        model.backbone.fc.weight += torch.randn(64)
    torch.testing.assert_close(
        create_explainer("class_evidence", model)(images, 3, raw=True), before, rtol=1e-4, atol=1e-5
    )


def test_feature_mean_and_attention_and_centre_are_what_they_say(models, images):
    model = models["lfi"]
    mean = sum(model.forward_features(images).unbind(1)) / 64
    torch.testing.assert_close(create_explainer("feature_mean", model)(images, raw=True)[:, 0], mean)
    attention = create_explainer("attention", model)(images, raw=True)
    assert torch.equal(attention, model.explain(images).attention)
    centre = create_explainer("centre", model)(images)
    assert torch.equal(centre[0], centre[3])
    assert torch.equal(centre, centre.flip(-1))
    assert centre[0, 0, 7:9, 11:13].min() == 1


def test_densenet_cam_uses_the_map_that_pooling_receives(images):
    model = make("lfi", "cifar_densenet100")
    pooled = model.pooled_features(model.forward_features(images), images)
    expected = torch.einsum("nkhw,k->nhw", pooled, model.linear_head.weight[3]).relu()
    torch.testing.assert_close(
        create_explainer("cam", model)(images, 3, raw=True)[:, 0], expected, rtol=1e-4, atol=1e-5
    )


def test_mode_is_restored_when_something_raises(models):
    model = models["plain"].train()
    with pytest.raises(InvalidInputError):
        create_explainer("cam", model)(torch.randn(1, 3, 16, 16), 99)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda models: create_explainer("gradcam", models["plain"]), "Did you mean 'grad_cam'"),
        (lambda models: create_explainer("cam", models["plain"], versus=3), "versus"),
        (lambda models: create_explainer("attention", models["plain"])(torch.zeros(1, 3, 8, 8)), "attention map"),
        (lambda models: create_explainer("cam", models["plain"])(torch.zeros(3, 8, 8)), "unsqueeze"),
        (
            lambda models: create_explainer("cam", models["plain"])(torch.zeros(1, 3, 8, 8, dtype=torch.int32)),
            "floating",
        ),
    ],
)
def test_wrong_use_says_what_to_do(models, call, message):
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        call(models)


def test_a_model_without_a_linear_head_is_told_apart():
    model = make("plain", "mobilenetv3_small_050")
    with pytest.raises(InvalidInputError, match=r"conv_head.*use grad_cam"):
        create_explainer("cam", model)
    assert model.explain(torch.zeros(1, 3, 32, 32)).evidence is None
    assert create_explainer("grad_cam", model)(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
