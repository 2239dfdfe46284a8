"""One contract suite that every model runs, and the facts each must keep."""

import pytest
import torch
import torchvision
from torch import nn

import lficam
from lficam import functional as LF
from lficam.contract import ExplainableClassifier
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.evaluation import model_size
from lficam.models.fin import FeatureImportanceNetwork
from lficam.models.plain import PlainClassifier

MODELS = {
    "plain resnet": ("cifar_resnet20", {"method": "plain"}),
    "lfi resnet": ("cifar_resnet20", {"method": "lfi"}),
    "lfi resnet scores": ("cifar_resnet20", {"method": "lfi", "importance": "scores"}),
    "lfi resnet relu": ("cifar_resnet20", {"method": "lfi", "fin": "conv3x3_relu"}),
    "lfi resnet pointwise": ("cifar_resnet20", {"method": "lfi", "fin": "pointwise"}),
    "lfi resnet product": ("cifar_resnet20", {"method": "lfi", "mechanism": "product", "temperature": 0.1}),
    "lfi resnet uniform": ("cifar_resnet20", {"method": "lfi", "fin": "uniform"}),
    "lfi resnet first guess": ("cifar_resnet20", {"method": "lfi", "fin": "first_guess"}),
    "abn resnet": ("cifar_resnet20", {"method": "abn"}),
    "plain seresnet": ("cifar_seresnet20", {"method": "plain"}),
    "lfi bottleneck": ("cifar_resnet20", {"method": "lfi", "backbone_args": {"block": "bottleneck"}}),
    "abn bottleneck": ("cifar_resnet20", {"method": "abn", "backbone_args": {"block": "bottleneck"}}),
    "abn seresnet": ("cifar_seresnet20", {"method": "abn"}),
    "lfi densenet": ("cifar_densenet100", {"method": "lfi"}),
    "abn densenet": ("cifar_densenet100", {"method": "abn"}),
    "lfi resnext": ("cifar_resnext29_8x64d", {"method": "lfi", "fin": "uniform"}),
    "abn resnext": ("cifar_resnext29_8x64d", {"method": "abn"}),
}
# timm's families: is there one linear layer behind global average pooling? The smallest of each, at 64 pixels.
FAMILIES = {
    "resnet18": True,
    "resnext50_32x4d": True,
    "seresnet18": True,
    "densenet121": True,
    "efficientnet_lite0": True,
    "mobilenetv2_050": True,
    "regnetx_002": True,
    "mobilenetv3_small_050": False,
    "convnext_atto": False,
    "vgg11": False,
    "paper_resnet18": True,
    "wrapped resnet18": True,
    "resnet18 attended at layer3": True,
}


def make_family(name):
    options = {"fin": "uniform" if name in ("vgg11", "resnext50_32x4d") else "pointwise"}
    if name == "wrapped resnet18":
        network = torchvision.models.resnet18(num_classes=7)
        return lficam.wrap(network, "layer4", method="lfi", image_size=64, **options)
    if name == "resnet18 attended at layer3":
        return lficam.create_model("resnet18", num_classes=7, attend_at="layer3", **options)
    return lficam.create_model(name, num_classes=7, **options)


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name.replace(" ", "-"))
def model(request):
    torch.manual_seed(0)
    backbone, options = MODELS[request.param]
    return lficam.create_model(backbone, num_classes=7, **options).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    return make_family(request.param).eval()


class Explained(nn.Module):
    """Logits and one map, as a thin module that `torch.export` takes."""

    def __init__(self, model, part):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, images):
        prediction = self.model.explain(images)
        return prediction.logits, getattr(prediction, self.part)


def _is_exact(model):
    return FAMILIES.get(model.config.backbone, True)  # all that are wrapped here are


class TestFamilies:
    """What every trunk of timm keeps."""

    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def test_the_contract_holds(self, family):
        with torch.no_grad():
            prediction = family.explain(self.images, class_idx=3)
            features = family.forward_features(self.images)
            assert torch.equal(family(self.images), prediction.logits)
            assert torch.equal(family.classify(features, self.images), prediction.logits)
        stride = 16 if family.config.backbone == "paper_resnet18" else 32
        assert prediction.attention.shape == (2, 1, 64 // stride, 96 // stride)
        assert torch.isfinite(prediction.logits).all()
        exact = _is_exact(family)
        assert (prediction.evidence is not None) == (family.linear_head is not None) == exact
        if exact:
            total = prediction.evidence.mean(dim=(1, 2, 3)) + family.linear_head.bias[3]
            torch.testing.assert_close(total, prediction.logits[:, 3], rtol=1e-4, atol=1e-4)

    def test_without_attention_it_is_timms_own_net(self, family):
        plain = PlainClassifier(family.backbone).eval()  # also without attend_at
        with torch.no_grad():
            torch.testing.assert_close(plain(self.images), family.backbone(self.images), rtol=1e-4, atol=1e-5)

    def test_gradients_are_finite_in_training(self, family):
        family.train()
        family.zero_grad()
        family.explain(self.images).logits.square().sum().backward()
        family.eval()
        for name, parameter in family.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        family.zero_grad()

    def test_autocast_and_save_and_load(self, family, tmp_path):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(family.explain(self.images).logits).all()
        family.save_pretrained(tmp_path)
        wrapped = ":" in family.config.backbone
        loaded = lficam.load(tmp_path, torchvision.models.resnet18(num_classes=7) if wrapped else None)
        assert all(torch.equal(tensor, family.state_dict()[name]) for name, tensor in loaded.state_dict().items())

    def test_memory_format_batch_and_mode_change_nothing(self, family):
        with torch.no_grad():
            expected = family(self.images)
            alone = torch.cat([family(image[None]) for image in self.images])
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
            family.to(memory_format=torch.channels_last)
            last = family.explain(self.images.contiguous(memory_format=torch.channels_last))
            family.to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(last.logits, expected, rtol=1e-4, atol=1e-4)
        assert not family.training

    def test_it_is_exported_and_compiled(self, family):
        explained = Explained(family, "attention")
        with torch.no_grad():
            expected = explained(self.images)
            exported = torch.export.export(explained, (self.images,)).module()(self.images)
            torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
            if family.config.backbone != "densenet121":  # 120 layers take half a minute to trace
                compiled = torch.compile(family.explain, backend="aot_eager")(self.images)
                torch.testing.assert_close((compiled.logits, compiled.attention), expected, rtol=1e-4, atol=1e-4)

    def test_what_stands_in_the_way_is_named(self, family):
        between = {
            "mobilenetv3_small_050": "conv_head",
            "convnext_atto": "head.norm",
            "vgg11": "pre_logits.fc1",
        }
        if _is_exact(family):
            lficam.create_explainer("cam", family)
        else:
            with pytest.raises(InvalidInputError, match=between[family.config.backbone]):
                lficam.create_explainer("cam", family)
        maps = lficam.create_explainer("grad_cam", family)(self.images, 2)
        assert maps.shape == (2, 1, 64, 96)


@pytest.mark.parametrize("backbone", ["resnet18", "seresnet18", "paper_resnet18"])
def test_abn_on_imagenet_trunks(backbone):
    model = lficam.create_model(backbone, "abn", num_classes=7)
    prediction = model.explain(TestFamilies.images)
    assert prediction.attention.shape == (2, 1, 4, 6)
    (prediction.logits.sum() + prediction.attention_logits.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_dropout_of_the_trunk_is_kept_and_the_evidence_stays_exact():
    torch.manual_seed(0)
    model = lficam.create_model("resnet18", "plain", 7, backbone_args={"drop_rate": 0.5}).train()
    with torch.no_grad():
        first, second = (model.explain(TestFamilies.images, 3) for _ in range(2))
        assert not torch.allclose(first.logits, second.logits)
        total = first.evidence.mean(dim=(1, 2, 3)) + model.linear_head.bias[3]
        torch.testing.assert_close(total, first.logits[:, 3], rtol=1e-4, atol=1e-4)
        model.eval()
        assert torch.equal(model(TestFamilies.images), model(TestFamilies.images))


def test_output_stride_16_gives_the_papers_grid():
    model = lficam.create_model("resnet18", "lfi", 7, {"output_stride": 16}, fin="uniform").eval()
    with torch.no_grad():
        assert model.explain(torch.zeros(1, 3, 224, 224)).attention.shape == (1, 1, 14, 14)


def test_a_fin_larger_than_its_trunk_is_said():
    with torch.device("meta"), pytest.warns(UserWarning, match="adds 151M parameters to the 24M of resnet50"):
        lficam.create_model("resnet50", "lfi")


@pytest.mark.parametrize(
    ("backbone", "method", "expected"),
    [
        ("paper_resnet18", "lfi", 17_470_504),
        ("paper_resnet34", "lfi", 29.94),
        ("paper_resnet50", "lfi", 43_046_952),
        ("paper_resnet101", "lfi", 62.04),
        ("paper_resnet152", "lfi", 77.68),
        ("resnet18", "abn", 21.61),
        ("resnet34", "abn", 36.44),
        ("resnet50", "abn", 43.58),
        ("resnet101", "abn", 62.58),
        ("resnet152", "abn", 78.22),
    ],
)
def test_the_sizes_of_table_3(backbone, method, expected):
    with torch.device("meta"):
        options = {"fin": "pointwise"} if method == "lfi" else {}
        found = count(lficam.create_model(backbone, method, 1000, **options))
    assert found == expected if isinstance(expected, int) else round(found / 1e6, 2) == expected


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_contract_holds(model, images):
    assert isinstance(model, ExplainableClassifier)
    with torch.no_grad():
        prediction = model.explain(images, class_idx=3)
        features = model.forward_features(images)
        assert torch.equal(model(images), prediction.logits)
        assert torch.equal(model.classify(features, images), prediction.logits)
        pooled = model.pooled_features(features, images)
    assert prediction.logits.shape == (2, 7)
    assert features.shape == pooled.shape == (2, model.backbone.num_features, 4, 6)
    assert prediction.evidence.shape == (2, 1, 4, 6)
    for part in prediction:
        assert part is None or torch.isfinite(part).all()


def test_evidence_sums_to_the_logit(model, images):
    with torch.no_grad():
        for class_idx in (0, 6, [2, 5], None):
            prediction = model.explain(images, class_idx)
            asked = prediction.logits.argmax(1) if class_idx is None else torch.tensor(class_idx).expand(2)
            logit = prediction.logits.gather(1, asked[:, None])[:, 0]
            total = prediction.evidence.mean(dim=(1, 2, 3)) + model.linear_head.bias[asked]
            torch.testing.assert_close(total, logit, rtol=1e-5, atol=1e-5)


def test_attention_is_what_the_method_says(model, images):
    with torch.no_grad():
        prediction = model.explain(images)
    method = model.config.method
    if method == "plain":
        assert prediction.attention is None
        return
    assert prediction.attention.shape == ((2, 1, 8, 12) if method == "abn" else (2, 1, 4, 6))
    assert prediction.attention.min() >= 0
    assert prediction.attention.max() <= 1
    assert (prediction.importance is None) == (method == "abn")
    assert (prediction.attention_logits is None) == (method != "abn")


def test_gradients_reach_every_parameter_and_are_finite(model, images):
    model.train()
    prediction = model.explain(images)
    loss = prediction.logits.square().sum()
    if prediction.attention_logits is not None:
        loss = loss + prediction.attention_logits.square().sum()
    model.zero_grad()
    loss.backward()
    model.eval()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images_have_finite_gradients(model, value):
    model.zero_grad()
    model.explain(torch.full((1, 3, 8, 8), value)).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_save_and_load_are_bit_equal(model, images, tmp_path):
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    loaded = lficam.load(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
        assert tensor.is_contiguous(), name


def test_autocast_keeps_the_evidence_exact(model, images):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = model.explain(images, class_idx=1)
    assert prediction.logits.dtype == prediction.evidence.dtype == torch.float32
    total = prediction.evidence.mean(dim=(1, 2, 3)) + model.linear_head.bias[1]
    torch.testing.assert_close(total, prediction.logits[:, 1], rtol=1e-5, atol=1e-5)


def test_a_model_of_bfloat16_or_float64_works(model, images):
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            other = lficam.create_model(
                model.config.backbone, model.config.method, 7, model.config.backbone_args, **model.config.options
            )
            other.load_state_dict(model.state_dict())
            prediction = other.eval().to(dtype).explain(images.to(dtype))
            torch.testing.assert_close(prediction.logits.float(), model(images), rtol=0.2, atol=0.2)


@pytest.mark.parametrize("size", [(4, 4), (5, 9)])
def test_a_grid_of_one_cell_works(model, size):
    prediction = model.explain(torch.randn(1, 3, *size))
    assert torch.isfinite(prediction.logits).all()


def test_export_and_compile_give_the_same(model, images):
    explained = Explained(model, "evidence")
    with torch.no_grad():
        expected = explained(images)
        exported = torch.export.export(explained, (images,)).module()(images)
        torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
        if model.config.backbone != "cifar_densenet100":  # 200 layers take half a minute to trace
            compiled = torch.compile(model.explain, backend="aot_eager")(images)
            torch.testing.assert_close((compiled.logits, compiled.evidence), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "options", "expected"),
    [
        ("cifar_resnet20", {"method": "lfi"}, 420_442),
        ("cifar_resnext29_8x64d", {"method": "lfi"}, 72_183_626),
        ("cifar_densenet100", {"method": "lfi"}, 4_982_602),
        ("cifar_resnet20", {"method": "abn"}, 479_150),
        (
            "cifar_resnet110",
            {"method": "lfi", "num_classes": 100, "backbone_args": {"block": "bottleneck"}},
            4_088_628,
        ),
    ],
)
def test_parameter_counts(backbone, options, expected):
    with torch.device("meta"):
        model = lficam.create_model(backbone, **options)
    assert count(model) == expected
    biased = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert biased == []


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_a_resnet_has_as_many_layers_as_its_name_says(depth):
    with torch.device("meta"):
        trunk = lficam.create_model(f"cifar_resnet{depth}", method="plain").backbone
    shortcuts = 2
    convolutions = sum(isinstance(module, nn.Conv2d) for module in trunk.modules())
    assert convolutions - shortcuts + 1 == depth


def test_convolutions_start_from_kaiming_normal_fan_out():
    model = lficam.create_model("cifar_resnet20", method="lfi")
    weight = model.fin.layers[0].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("conv3x3", "CB CBR CB CBR"),
        ("conv3x3_relu", "CBR CBR CBR CBR"),
        ("pointwise", "CB CBR CB CBR"),
    ],
)
def test_the_layers_of_the_fin(name, kinds):
    network = FeatureImportanceNetwork(4, name)
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R"}
    assert "".join(letters[type(layer)] for layer in network.layers) == kinds.replace(" ", "")
    widths = [layer.out_channels for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert widths == ([8, 8, 4, 4] if name == "pointwise" else [4, 4, 4, 4])


def test_importance_is_the_softmax_of_the_pooled_scores_or_the_scores():
    torch.manual_seed(0)
    scores, softmax = (FeatureImportanceNetwork(4, importance=name).eval() for name in ("scores", "softmax"))
    softmax.load_state_dict(scores.state_dict())
    masked = torch.randn(2, 4, 5, 5)
    plain = scores(masked)
    assert (plain >= 0).all()
    torch.testing.assert_close(plain, scores.layers(masked).flatten(2).mean(dim=2))
    torch.testing.assert_close(softmax(masked), plain.exp() / plain.exp().sum(dim=1, keepdim=True))


def test_a_temperature_divides_the_scores():
    torch.manual_seed(0)
    usual, cold = (FeatureImportanceNetwork(4, temperature=value).eval() for value in (1.0, 0.1))
    cold.load_state_dict(usual.state_dict())
    masked = torch.randn(2, 4, 5, 5)
    logarithms = usual(masked).log()
    torch.testing.assert_close(cold(masked), (10 * (logarithms - logarithms[:, :1])).softmax(dim=1))
    with pytest.raises(InvalidInputError, match="temperature: expected more than 0, got 0"):
        lficam.create_model("cifar_resnet20", temperature=0)


def test_without_the_grey_mask_the_fin_sees_the_features_alone():
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", grey_mask=False).eval()
    images = torch.randn(2, 3, 16, 16)
    features = model.forward_features(images)
    torch.testing.assert_close(model.explain(images).importance, model.fin(LF.min_max(features)))


def test_the_product_leaves_nothing_where_the_map_is_zero():
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", num_classes=7, mechanism="product").eval()
    images = torch.randn(2, 3, 16, 16)
    prediction, features = model.explain(images, 3), model.forward_features(images)
    logits = model.linear_head((prediction.attention * features).mean(dim=(2, 3)))
    torch.testing.assert_close(prediction.logits, logits)
    torch.testing.assert_close(model.answer_with(images, prediction.attention), logits)
    control = model.with_uniform_importance()
    mean = LF.min_max(features.mean(dim=1, keepdim=True))
    torch.testing.assert_close(control(images), model.linear_head((mean * features).mean(dim=(2, 3))))
    with pytest.raises(UnknownNameError, match="unknown mechanism 'sum'"):
        lficam.create_model("cifar_resnet20", mechanism="sum")


def test_all_zero_scores_give_a_flat_map_and_unchanged_features():
    model = lficam.create_model("cifar_resnet20", method="lfi", importance="scores").eval()
    nn.init.zeros_(model.fin.layers[-2].weight)
    nn.init.zeros_(model.fin.layers[-2].bias)
    images = torch.randn(2, 3, 16, 16)
    features = model.forward_features(images)
    attended = model.attend(features, images)
    assert (attended.attention == 0).all()
    assert torch.equal(attended.features, features)


def test_the_first_guess_attends_to_the_evidence_of_what_a_net_without_attention_would_say():
    torch.manual_seed(0)
    model = lficam.create_model("cifar_densenet100", "lfi", 7, fin="first_guess").eval()
    plain = PlainClassifier(model.backbone)
    plain.config = model.config
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        guess = plain(images).softmax(dim=1)
        row = torch.einsum("nc,ck->nk", guess, model.linear_head.weight - model.linear_head.weight.mean(dim=0))
        found = model.explain(images)
        torch.testing.assert_close(found.importance, row)
        expected = torch.einsum("nk,nkhw->nhw", row, model.forward_features(images)).relu().unsqueeze(1)
        torch.testing.assert_close(found.attention, LF.min_max(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidInputError, match="first_guess reads the rows of one linear layer"):
        lficam.create_model("mobilenetv3_small_050", "lfi", 7, fin="first_guess")


def test_the_first_guess_costs_next_to_nothing():
    guess, uniform = (
        model_size(lficam.create_model("cifar_resnet20", fin=fin), 32) for fin in ("first_guess", "uniform")
    )
    assert guess["parameters"] == uniform["parameters"]
    assert guess["multiply_adds"] < 1.001 * uniform["multiply_adds"]


def test_uniform_is_the_same_net_without_the_fin():
    model = lficam.create_model("cifar_resnet20", method="lfi").eval()
    control = model.with_uniform_importance()
    images = torch.randn(2, 3, 16, 16)
    prediction = control.explain(images)
    assert (prediction.importance == 1 / 64).all()
    features = model.forward_features(images)
    mean = features.mean(dim=1, keepdim=True)
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(prediction.attention, (mean - low) / (high - low), rtol=1e-4, atol=1e-5)
    assert control.config is model.config


def test_abn_multiplies_before_the_last_stage():
    model = lficam.create_model("cifar_resnet20", method="abn").eval()
    images = torch.randn(2, 3, 16, 16)
    net, branch = model.backbone, model.attention_branch
    extracted = net.stages[1](net.stages[0](net.stem(images)))
    per_class = branch.per_class(branch.norm(branch.stage(extracted)))
    attention = branch.to_map(per_class).sigmoid()
    expected = net.stages[2](extracted + attention * extracted)
    torch.testing.assert_close(model.forward_features(images), expected)
    torch.testing.assert_close(model.explain(images).attention_logits, branch.to_logits(per_class).mean(dim=(2, 3)))
    assert branch.stage[0].branch[0][0].stride == (1, 1)
    assert net.stages[2][0].branch[0][0].stride == (2, 2)
    assert branch.stage[0].branch[0][0].weight.data_ptr() != net.stages[2][0].branch[0][0].weight.data_ptr()


def test_densenet_attends_before_its_last_norm():
    model = lficam.create_model("cifar_densenet100", method="lfi").eval()
    images = torch.randn(1, 3, 16, 16)
    features = model.forward_features(images)
    attended = model.attend(features, images).features
    torch.testing.assert_close(model.pooled_features(features, images), model.backbone.pre_pool(attended))
    assert (features < 0).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lficam.create_model("cifar_resnet20x"), UnknownNameError, "Did you mean 'cifar_resnet20'"),
        (lambda: lficam.create_model("resnet19"), UnknownNameError, "resnet18"),
        (lambda: lficam.create_model("efficientnet_lite0", "abn"), InvalidInputError, "EfficientNet is not"),
        (lambda: lficam.create_model("cifar_resnet20", pretrained=True), InvalidInputError, "pretrained"),
        (
            lambda: lficam.create_model("vit_tiny_patch16_224", "plain")(torch.zeros(1, 3, 224, 224)),
            InvalidInputError,
            "convolutional network",
        ),
        (lambda: lficam.create_model("cifar_resnet20", method="lif"), UnknownNameError, "abn, lfi, plain"),
        (lambda: lficam.create_model("cifar_resnet20", fin="conv5"), UnknownNameError, "conv3x3"),
        (lambda: lficam.create_model("cifar_resnet20", importance="max"), UnknownNameError, "scores, softmax"),
        (lambda: lficam.create_model("cifar_resnet20", method="abn", fin="pointwise"), InvalidInputError, "fin"),
        (lambda: lficam.create_model("cifar_resnet20", num_classes=1), InvalidInputError, "at least 2"),
        (lambda: lficam.create_model("cifar_resnet20", backbone_args={"blok": 1}), InvalidInputError, "blok"),
        (lambda: lficam.create_model("cifar_resnet20", backbone_args={"block": "x"}), InvalidInputError, "bottleneck"),
    ],
)
def test_wrong_names_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("images", "class_idx", "message"),
    [
        (torch.zeros(3, 16, 16), None, "unsqueeze"),
        (torch.zeros(2, 1, 16, 16), None, "3 channels"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), None, "preprocessing"),
        (torch.zeros(2, 3, 2, 16), None, "at least 4 x 4"),
        (torch.zeros(2, 3, 16, 16), 7, "expected 0 to 6"),
        (torch.zeros(2, 3, 16, 16), [1, 2, 3], "one index per image"),
    ],
)
def test_wrong_images_and_classes_say_what_to_do(images, class_idx, message):
    model = lficam.create_model("cifar_resnet20", num_classes=7)
    with pytest.raises(InvalidInputError, match=message):
        model.explain(images, class_idx)


def test_inductor_compiles_one_small_net_to_the_same_answers():
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", num_classes=7).eval()
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        expected, found = model.explain(images, 3), torch.compile(model.explain)(images, 3)
    for one, other in zip(expected, found, strict=True):
        assert one is None or torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "stage", "layers"), [("resnet18", "layer3", "layer4"), ("cifar_resnet20", "stages.1", "stages.2")]
)
def test_attention_on_an_earlier_stage_is_the_slow_way(backbone, stage, layers):
    """Section 3.3, step by step: the last map's attention, resized, on the stage; then the last layers again."""
    torch.manual_seed(0)
    model = lficam.create_model(backbone, num_classes=7, fin="pointwise", attend_at=stage).eval()
    captured = {}
    trunk = model.backbone
    handle = trunk.get_submodule(stage).register_forward_hook(lambda _layer, _inputs, out: captured.update(early=out))
    with torch.no_grad():
        features = trunk.forward_features(TestFamilies.images)
        handle.remove()
        importance = model.fin(LF.fin_input(TestFamilies.images, features))
        attention = LF.attention_map(features, importance)
        size = captured["early"].shape[-2:]
        resized = nn.functional.interpolate(attention, size, mode="bilinear", align_corners=False)
        expected = trunk.forward_head(trunk.get_submodule(layers)((1 + resized) * captured["early"]))
        prediction = model.explain(TestFamilies.images, 3)
        torch.testing.assert_close(prediction.logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prediction.attention, attention)
        torch.testing.assert_close(prediction.importance, importance)
        assert torch.equal(model(TestFamilies.images), prediction.logits)
        total = prediction.evidence.mean(dim=(1, 2, 3)) + model.linear_head.bias[3]
        torch.testing.assert_close(total, prediction.logits[:, 3], rtol=1e-4, atol=1e-4)


def test_a_stage_that_does_not_exist_lists_those_that_do():
    with pytest.raises(UnknownNameError, match=r"unknown stage 'layer9'.*layer1, .*layer4"):
        lficam.create_model("resnet18", attend_at="layer9", fin="uniform")
