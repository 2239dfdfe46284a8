"""One contract suite for all explainers, and each against a peer library or a slow rewrite."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam import GradCAMPlusPlus as PeerGradCAMPlusPlus
from pytorch_grad_cam import LayerCAM as PeerLayerCAM
from pytorch_grad_cam import ScoreCAM as PeerGradCAMScore
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch import nn
from torchcam.methods import CAM as PeerCAM
from torchcam.methods import GradCAM as PeerTorchcamGradCAM
from torchcam.methods import ScoreCAM as PeerScoreCAM

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


# Few masks and samples, and a Lasso that hears the faint answers of a random net.
SMALL = {"rise": {"count": 24, "grid": 3}, "lime": {"samples": 24, "segments": 8, "alpha": 1e-6}}
WITHOUT_FEATURES = ("attention", "centre", "random", "rise", "lime")


def small(name, model, **options):
    return create_explainer(name, model, **{**SMALL.get(name, {}), **options})


CASES = [
    pytest.param(name, method, id=f"{name}-{method}")
    for name in EXPLAINERS
    for method in METHODS
    if (name, method) != ("attention", "plain")
]


@pytest.mark.parametrize(("name", "method"), CASES)
class TestContract:
    def test_maps_are_finite_and_of_input_size_in_the_unit_interval(self, models, images, name, method):
        maps = small(name, models[method])(images)
        assert maps.shape == (4, 1, 16, 24)
        assert maps.amin(dim=(1, 2, 3)).tolist() == [0.0] * 4
        assert set(maps.amax(dim=(1, 2, 3)).tolist()) <= {0.0, 1.0}
        assert not maps.requires_grad

    def test_a_map_does_not_depend_on_its_batch(self, models, images, name, method):
        explain = small(name, models[method])
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
            small(name, model)(images)
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
        expected = small(name, models[method])(images)
        with context():
            found = small(name, models[method])(images.clone())
        torch.testing.assert_close(found.clone(), expected)

    def test_flat_features_give_a_flat_zero_map(self, models, name, method):
        if name in WITHOUT_FEATURES:
            pytest.skip("they do not come from the last features alone")
        model = models[method]
        original = model.forward_features
        model.forward_features = lambda images: torch.full((len(images), 64, 4, 6), 0.5)
        try:
            assert (small(name, model)(torch.zeros(2, 3, 16, 24)) == 0).all()
        finally:
            model.forward_features = original

    def test_it_is_the_same_twice_and_for_several_targets_at_once(self, models, images, name, method):
        explain = small(name, models[method])
        first = explain(images, raw=True)
        assert torch.equal(explain(images, raw=True), first)
        if explain.class_targeted:
            targets = [2, [0, 1, 2, 3], None]
            for target, maps in zip(targets, explain.for_targets(images, targets, raw=True), strict=True):
                torch.testing.assert_close(maps, explain(images, target, raw=True))

    def test_a_function_of_the_logits_is_explained_or_refused(self, models, images, name, method):
        explain = small(name, models[method])
        if name in ("cam", "class_evidence", "class_evidence_versus"):
            with pytest.raises(InvalidInputError, match="takes no function; use grad_cam"):
                explain(images, lambda logits: logits[:, 2])
        elif explain.class_targeted:
            margin = explain(images, lambda logits: logits[:, 2] - logits[:, 4], raw=True)
            assert torch.isfinite(margin).all()
            assert not torch.allclose(margin, explain(images, lambda logits: logits[:, 4] - logits[:, 2], raw=True))
            with pytest.raises(InvalidInputError, match=r"that gives \(N,\), got"):
                explain(images, lambda logits: logits)

    def test_a_grid_of_one_cell(self, models, name, method):
        assert torch.isfinite(small(name, models[method])(torch.randn(2, 3, 4, 4))).all()

    def test_the_class_is_respected_or_refused(self, models, images, name, method):
        explain = small(name, models[method])
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


def close_maps(found, expected, relative=1e-5):
    """Raw maps (N, h, w), equal but for ``relative`` of each one's largest value; one without any is zero."""
    assert (expected != 0).any()
    largest = expected.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=relative)


def trained(model, images):
    """A few steps, until the pictures are told apart: weights, scales and answers of a trained net."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = 3 + torch.arange(len(images))  # 3 is what will be asked for
    for _ in range(15):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    model.eval()
    assert (model(images).argmax(dim=1) == labels).all()
    return model


@pytest.fixture(scope="module", params=["cifar", "cifar, trained", "resnet18", "resnet18, trained"])
def peered(request, images):
    """A network of ours in a plain model, its last layer before pooling by name, and a batch for it."""
    if request.param.startswith("cifar"):
        model, layer, pictures = make("plain"), "stages.2", images
    else:
        model, layer, pictures = make("plain", "resnet18"), "layer4.1", images[:2].repeat(1, 1, 3, 3)
        with torch.no_grad():
            model.backbone.layer4[1].bn2.bias[:100] = -50  # dead channels
    if request.param.endswith("trained"):
        model = trained(model, pictures)
    return model, layer, pictures


def ask_torchcam(kind, peered, class_idx=3, **options):
    """The raw maps (N, h, w) of torchcam, after a ReLU."""
    model, layer, pictures = peered
    with kind(model.backbone, layer, input_shape=tuple(pictures.shape[1:]), **options) as peer:
        scores = model.backbone(pictures)
        with nullcontext() if kind is PeerTorchcamGradCAM else torch.no_grad():
            (maps,) = peer([class_idx] * len(pictures), scores, normalized=False)
    model.zero_grad()
    return maps.detach().relu()


def ask_grad_cam_package(kind, peered, target):
    """The raw maps (N, h, w) of pytorch-grad-cam, after a ReLU, with the activations and gradients it hooked."""
    model, layer, pictures = peered
    module, targets = model.backbone.get_submodule(layer), [target] * len(pictures)
    with kind(model, [module]) as peer, torch.no_grad() if kind is PeerGradCAMScore else nullcontext():
        if kind is PeerGradCAMScore:
            activations, gradients = model.forward_features(pictures).numpy(), None
        else:
            peer(pictures, targets)
            activations = peer.activations_and_grads.activations[0].numpy()
            gradients = peer.activations_and_grads.gradients[0].numpy()
        maps = peer.get_cam_image(pictures, module, targets, activations, gradients, False)
    model.zero_grad()
    return torch.from_numpy(maps).relu(), activations, gradients


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("cam", PeerCAM, {"fc_layer": "fc"}),
        ("grad_cam", PeerTorchcamGradCAM, {}),
        ("score_cam", PeerScoreCAM, {}),
    ],
)
def test_maps_are_torchcams(peered, name, kind, options):
    model, _, pictures = peered
    variant = {"variant": "score_cam"} if name == "score_cam" else {}
    found = create_explainer(name, model, **variant)(pictures, 3, raw=True)[:, 0]
    close_maps(found, ask_torchcam(kind, peered, **options))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("grad_cam", PeerGradCAM), ("layer_cam", PeerLayerCAM), ("score_cam", PeerGradCAMScore)],
)
def test_maps_are_pytorch_grad_cams(peered, name, kind):
    model, _, pictures = peered
    variant = {"variant": "grad_cam_package"} if name == "score_cam" else {}
    found = create_explainer(name, model, **variant)(pictures, 3, raw=True)[:, 0]
    close_maps(found, ask_grad_cam_package(kind, peered, ClassifierOutputTarget(3))[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "kind"), [("grad_cam", PeerGradCAM), ("layer_cam", PeerLayerCAM), ("score_cam", PeerGradCAMScore)]
)
def test_maps_of_attending_models_are_pytorch_grad_cams(models, images, method, name, kind):
    peered = models[method], "stages.2", images
    variant = {"variant": "grad_cam_package"} if name == "score_cam" else {}
    found = create_explainer(name, models[method], **variant)(images, 3, raw=True)[:, 0]
    close_maps(found, ask_grad_cam_package(kind, peered, ClassifierOutputTarget(3))[0])


def louder(logits):
    """Pytorch-grad-cam adds 1e-6 to Grad-CAM++'s denominator, which drowns the small gradients of a random net."""
    return 1e4 * logits[..., 3]


@pytest.mark.parametrize("method", METHODS)
def test_grad_cam_pp_is_pytorch_grad_cams_and_the_slow_sum(models, images, method):
    model = models[method]
    expected, activations, gradients = ask_grad_cam_package(PeerGradCAMPlusPlus, (model, "stages.2", images), louder)
    found = create_explainer("grad_cam_pp", model)(images, louder, raw=True)[:, 0]
    # Not 1e-5: what the peer adds to its denominator is still seen.
    close_maps(found, expected, relative=1e-3)

    activations, gradients = (torch.from_numpy(values).double() for values in (activations, gradients))
    slow = torch.zeros_like(activations[:, 0])
    for n in range(4):
        for k in range(64):
            total, weight = activations[n, k].sum(), 0.0
            for gradient in gradients[n, k].flatten().tolist():
                if gradient != 0:
                    weight += gradient**2 / (2 * gradient**2 + total * gradient**3) * max(gradient, 0.0)
            slow[n] += weight * activations[n, k]
    close_maps(found.double(), slow.relu())


def test_score_cam_is_equations_1_to_4(models, images):
    """One channel at a time, in float64."""
    model = make("lfi").double()
    pictures = images.double()
    with torch.no_grad():
        features = model.forward_features(pictures)
        expected = torch.zeros(4, 4, 6, dtype=torch.float64)
        for n, picture in enumerate(pictures):
            for k in range(64):
                up = nn.functional.interpolate(features[n : n + 1, k : k + 1], size=(16, 24), mode="bilinear")[0, 0]
                mask = (up - up.min()) / (up.max() - up.min()) if up.max() > up.min() else up * 0
                weight = model((mask * picture)[None]).softmax(dim=1)[0, 3]
                expected[n] += weight * features[n, k]
    found = create_explainer("score_cam", model, batch_size=7)(pictures, 3, raw=True)[:, 0]
    torch.testing.assert_close(found, expected.relu(), rtol=1e-9, atol=1e-12)


def test_rise_is_equation_6(models, images):
    model = models["plain"]
    explain = create_explainer("rise", model, count=10, grid=4, p=0.3)
    masks = torch.cat(list(explain._masks((16, 24)))).double()
    assert masks.shape == (10, 1, 16, 24)
    assert masks.min() >= 0
    assert masks.max() <= 1
    double = make("plain").double()
    expected = torch.zeros(4, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        for n, picture in enumerate(images.double()):
            for mask in masks:
                expected[n] += double((mask * picture)[None]).softmax(dim=1)[0, 3] * mask[0] / (10 * 0.3)
    torch.testing.assert_close(explain(images, 3, raw=True)[:, 0].double(), expected, rtol=1e-4, atol=1e-5)
    many = torch.cat(list(create_explainer("rise", model, count=400, grid=7)._masks((16, 24))))
    assert many.mean().item() == pytest.approx(0.5, abs=0.02)


def test_lime_is_captums(models, images):
    from captum._utils.models.linear_model import SkLearnLasso
    from captum.attr import Lime

    model = models["plain"]
    images = nn.functional.interpolate(images[..., :4, :6], size=(16, 24), mode="nearest")
    explain = create_explainer("lime", model, samples=40, segments=8, alpha=1e-6)
    superpixels = torch.from_numpy(explain.superpixels(images[0]))[None, None]
    assert len(superpixels.unique()) == int(superpixels.max()) + 1 > 3
    torch.manual_seed(0)
    expected = Lime(lambda pictures: model(pictures).softmax(dim=1)[:, 3], SkLearnLasso(alpha=1e-6)).attribute(
        images[:1], feature_mask=superpixels, n_samples=40, perturbations_per_eval=32
    )
    found = explain(images, 3, raw=True)[:1]
    torch.testing.assert_close(found, expected[:, :1], rtol=1e-4, atol=1e-6)
    assert len(found.unique()) > 2


def test_bfloat16_keeps_the_ranks(models, images):
    exact = create_explainer("score_cam", models["plain"])(images, 3).flatten(1)
    fast = create_explainer("score_cam", models["plain"], precision="auto")(images, 3).flatten(1)
    for one, other in zip(exact, fast, strict=True):
        assert spearmanr(one, other).statistic > 0.98


def test_a_single_logit_is_the_log_odds_of_one_class(images):
    model = lficam.create_model("cifar_resnet20", "plain").eval()
    model.backbone.fc = nn.Linear(64, 1)
    nn.init.ones_(model.backbone.fc.weight)
    for name in ("cam", "class_evidence", "grad_cam", "score_cam", "rise", "lime"):
        maps = small(name, model)(images, 0, raw=True)
        assert torch.isfinite(maps).all()
        assert maps.abs().max() > 0


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


@pytest.mark.parametrize("asked", [None, 3])
def test_the_rival_of_a_class_is_the_predicted_one_or_the_second(models, images, asked):
    model = models["plain"]
    rivals = []
    for logits in model(images).tolist():
        ranked = sorted(range(CLASSES), key=lambda number: -logits[number])
        rivals.append(ranked[1] if asked in (None, ranked[0]) else ranked[0])
    expected = create_explainer("class_evidence", model, versus=rivals)(images, asked, raw=True)
    assert torch.equal(create_explainer("class_evidence_versus", model)(images, asked, raw=True), expected)
    said = create_explainer("class_evidence_versus", model, versus=5)(images, asked, raw=True)
    assert torch.equal(said, create_explainer("class_evidence", model, versus=5)(images, asked, raw=True))


def test_one_class_has_no_rival():
    model = make("plain")
    model.backbone.fc = nn.Linear(64, 1)
    with pytest.raises(InvalidInputError, match="needs two classes"):
        create_explainer("class_evidence_versus", model)


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
        (lambda models: create_explainer("score_cam", models["plain"], variant="x"), "variant 'x'"),
        (lambda models: create_explainer("rise", models["plain"], p=1), "0 < p < 1"),
        (
            lambda models: create_explainer("rise", models["plain"], precision="16")(torch.zeros(1, 3, 8, 8)),
            "precision '16'",
        ),
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


@pytest.mark.parametrize("name", EXPLAINERS)
def test_a_batch_of_none_gives_none(models, name):
    assert small(name, models["lfi"])(torch.zeros(0, 3, 16, 24)).shape == (0, 1, 16, 24)


def test_classes_come_in_every_integer_form(models, images):
    explain = create_explainer("cam", models["plain"])
    expected = explain(images, 3)
    for form in (np.int64(3), torch.tensor(3), [np.int64(3)] * 4, torch.full((4,), 3, dtype=torch.int32)):
        torch.testing.assert_close(explain(images, form), expected)
    with pytest.raises(InvalidInputError, match="expected integers"):
        explain(images, torch.full((4,), 3.0))
    with pytest.raises(InvalidInputError, match="got float"):
        create_explainer("grad_cam", models["plain"])(images, lambda logits: 1.0)


def test_rise_sums_in_full_precision_whatever_the_passes_are_in(models, images):
    exact = create_explainer("rise", models["plain"], count=64)(images, 3, raw=True)
    fast = create_explainer("rise", models["plain"], count=64, precision="auto")(images, 3, raw=True)
    # Probabilities of bfloat16 passes differ by their rounding, sums of 64 of them by less.
    torch.testing.assert_close(fast, exact, rtol=2e-3, atol=2e-3 * float(exact.max()))


def test_noise_is_each_pictures_own_and_that_of_a_seed(models, images):
    first = create_explainer("random", models["plain"])(images, raw=True)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(create_explainer("random", models["plain"])(images[2:3], raw=True), first[2:3])
    assert not torch.equal(create_explainer("random", models["plain"], seed=1)(images, raw=True), first)
