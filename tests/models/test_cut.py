"""A network in parts gives what the whole gives, in both modes, and what cannot be cut says why."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lficam.errors import InvalidInputError, UnknownNameError
from lficam.models.cut import Cut

images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Branches on a value inside a layer, and drops out by its own flag in the forward function."""

    class Layer(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else -x

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.layer = self.Layer()
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.layer(self.conv(x))
        x = F.dropout(x.relu(), 0.5, self.training)
        return self.fc(x.mean((2, 3)))


class AroundTheStage(nn.Module):
    """A later step takes a value from before the stage."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.first(x)
        return (self.second(y) + y).mean((2, 3))


class OnValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("network", "stages"),
    [
        (torchvision.models.resnet18(num_classes=5), ["layer4"]),
        (torchvision.models.resnet18(num_classes=5), ["layer3", "layer4"]),
        (torchvision.models.densenet121(num_classes=5), ["relu"]),
        (torchvision.models.vgg11(num_classes=5), ["features"]),
        (timm.create_model("resnet18", num_classes=5, drop_rate=0.5), ["layer4"]),
        (Branching(), ["layer"]),
        (Branching(), ["relu"]),
    ],
)
def test_the_parts_in_a_row_are_the_whole_to_the_bit(network, stages):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    random = torch.get_rng_state()
    cut = Cut(network, *stages)
    cut.require_exact(network, images)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in network.modules())


def test_a_stage_is_cut_behind_its_last_step():
    network = torchvision.models.resnet18().eval()
    expected = nn.Sequential(*list(network.children())[:-2])(images)
    assert torch.equal(Cut(network, "layer4").run(0, network, images), expected)


def test_another_method_can_be_cut():
    network = timm.create_model("resnet18").eval()
    cut = Cut(network, "layer3", method="forward_features")
    features = cut.run(1, network, cut.run(0, network, images))
    assert torch.equal(features, network.forward_features(images))


@pytest.mark.parametrize(
    ("network", "stages", "kind", "message"),
    [
        (torchvision.models.resnet18(), ["layer5"], UnknownNameError, "layer4"),
        (torchvision.models.densenet121(), ["features.denseblock5"], UnknownNameError, r"features.denseblock4.*relu"),
        (AroundTheStage(), ["second"], InvalidInputError, "a later step needs 'first'"),
        (OnValues(), ["conv"], InvalidInputError, "cannot be traced.*two functions"),
        (torchvision.models.resnet18(), ["layer4", "layer3"], InvalidInputError, "order of the data"),
        (torchvision.models.resnet18(), ["layer4", "layer4"], InvalidInputError, "different stages"),
    ],
)
def test_what_cannot_be_cut_says_why(network, stages, kind, message):
    with pytest.raises(kind, match=message):
        Cut(network, *stages)


def test_parts_that_are_not_the_whole_are_refused():
    class Counting(nn.Module):
        """Its forward function does another thing each time it runs, which a trace does not see."""

        def __init__(self):
            super().__init__()
            self.conv, self.times = nn.Conv2d(3, 4, 1), 0

        def forward(self, x):
            self.times += 1
            return self.conv(x).mean((2, 3)) + self.times

    network = Counting()
    with pytest.raises(InvalidInputError, match="differ from the whole in evaluation mode"):
        Cut(network, "conv").require_exact(network, images)
