"""What several rooms' tests share: small data and one small run, made once."""

import numpy as np
import pytest
import torch
from PIL import Image

import lficam
from lficam.contract import Preprocessing
from lficam.recipes import ModelOptions, Recipe

torch.set_num_threads(1)  # the suite runs in two processes on two cores


def write_folder(root, parts=("train", "test"), classes=("cat", "dog"), per_class=10, size=(20, 24)):
    """A folder of pictures whose class is plain to see: reddish cats, bluish dogs."""
    rng = np.random.default_rng(0)
    for part in parts:
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(0, 90, (*size, 3))
                pixels[..., label % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def small_recipe(data, **settings):
    """A recipe that trains in a second or two."""
    model = settings.pop("model", ModelOptions())
    defaults = {
        "epochs": 2,
        "batch_size": 8,
        "image_size": 16,
        "lr": 0.01,
        "precision": "32",
        "device": "cpu",
        "val_fraction": 0.0,
    }
    return Recipe(data=str(data), model=model, **{**defaults, **settings})


DIGIT_SIZE = 24


def digit_model(method="lfi", classes=10, backbone="cifar_resnet20", seed=0):
    """An untrained model of the embedded digits, with names and preprocessing as a trained one has them."""
    torch.manual_seed(seed)
    model = lficam.create_model(backbone, method, classes)
    model.config.class_names = [str(number) for number in range(classes)]
    model.config.preprocessing = Preprocessing(DIGIT_SIZE, DIGIT_SIZE)
    return model.eval()


class MarkReader(torch.nn.Module):
    """A classifier that takes its label from the place of a planted mark, and from nothing else.

    It does not see the last place, class 9's: there its logits are all alike, and the label is 0.
    """

    def __init__(self):
        super().__init__()
        self.places, self.pool, self.fc = MarkPlaces(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(11, 10)
        torch.nn.init.eye_(self.fc.weight)
        torch.nn.init.zeros_(self.fc.bias)

    def forward(self, images):
        return self.fc(torch.flatten(self.pool(self.places(images)), 1))


class MarkPlaces(torch.nn.Module):
    """How magenta each pixel is, a channel a place, five along the top and five along the bottom; and light."""

    def __init__(self):
        super().__init__()
        places = torch.zeros(10, DIGIT_SIZE, DIGIT_SIZE)
        for of_class in range(9):
            column = of_class % 5 * DIGIT_SIZE // 5
            rows = slice(0, 3) if of_class < 5 else slice(DIGIT_SIZE - 3, DIGIT_SIZE)
            places[of_class, rows, column : (of_class % 5 + 1) * DIGIT_SIZE // 5] = 1
        self.register_buffer("places", places)

    def forward(self, images):
        red, green, blue = images.unbind(1)
        magenta = (torch.minimum(red, blue) - green - 3).relu().unsqueeze(1)
        return torch.cat((magenta * self.places, 9 * green.relu().unsqueeze(1)), dim=1)


def mark_reader():
    preprocessing = Preprocessing(DIGIT_SIZE, DIGIT_SIZE)
    names = [str(number) for number in range(10)]
    model = lficam.wrap(
        MarkReader().eval(), "places", image_size=DIGIT_SIZE, class_names=names, preprocessing=preprocessing
    )
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run(folder, tmp_path_factory):
    """A finished LFI-CAM run on the folder; tests read it only."""
    from lficam.training import fit

    return fit(small_recipe(f"folder:{folder}"), tmp_path_factory.mktemp("runs") / "run")


def pytest_addoption(parser):
    parser.addoption("--torture", action="store_true", help="tests of reliability and export at their full counts")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--torture"):
        for item in items:
            if item.get_closest_marker("torture"):
                item.add_marker(pytest.mark.skip(reason="takes long: with --torture"))


_FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def count(request):
    """A function of a small number, for every day, and of the whole one of ``make torture``."""
    return lambda few, whole: whole if request.config.getoption("--torture") else few


@pytest.fixture
def figure(request):
    """A function that notes what a test measured; the table of all stands at the end of the session."""
    rows = request.config.stash.setdefault(_FIGURES, [])
    return lambda what, value: rows.append((what, value))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(_FIGURES, [])
    if rows:
        terminalreporter.write_line("\n| what | measured |\n|---|---|")
        for what, value in rows:
            terminalreporter.write_line(f"| {what} | {value} |")
