"""Folding batch norm: the same logits, and only where nothing else reads the convolution."""

import pytest
import torch
from torch import nn

import lficam
from lficam.explainers.fast import fast_classifier, fold_batch_norm


class TwoReaders(nn.Module):
    """Its second convolution is read by a batch norm and by a sum, its third runs twice, its fourth has two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.alias = self.fourth
        self.norms = nn.ModuleList(shaken(nn.BatchNorm2d(3)) for _ in range(5))

    def forward(self, images):
        hidden = self.norms[0](self.first(images))
        hidden = self.second(hidden)
        hidden = self.norms[1](hidden) + hidden
        hidden = self.norms[2](self.third(hidden)) + self.norms[3](self.third(-hidden))
        return self.norms[4](self.fourth(hidden))


def shaken(norm):
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    return norm


def test_only_what_no_one_else_reads_is_folded():
    torch.manual_seed(0)
    model, images = TwoReaders().double().eval(), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = model(images)
    with torch.no_grad():
        assert fold_batch_norm(model, images[:1]) == 1
    assert isinstance(model.norms[0], nn.Identity)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


def test_a_convolution_with_a_hook_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shaken(nn.BatchNorm2d(3))).eval()
    model[0].register_forward_hook(lambda *_: None)
    assert fold_batch_norm(model, torch.randn(1, 3, 4, 4)) == 0


@pytest.mark.parametrize(
    ("backbone", "folded"), [("cifar_resnet20", 21), ("cifar_densenet100", 48), ("cifar_seresnet20", 21)]
)
@pytest.mark.parametrize("method", ["plain", "lfi"])
def test_the_logits_stay(backbone, folded, method):
    torch.manual_seed(0)
    model = lficam.create_model(backbone, method, 7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shaken(module)
    images = torch.randn(2, 3, 16, 24)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = model(images)
    with fast_classifier(model, images, "32") as classify:
        found = classify(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert fold_batch_norm(model, images) == folded + (4 if method == "lfi" else 0)  # the FIN has four
