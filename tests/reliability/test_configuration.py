"""Whatever stands in a recipe, a record or on the command line: it works, or it is one plain error of ours."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lficam
from lficam.cli import main
from lficam.errors import LficamError, RunError
from lficam.files import read_record
from lficam.recipes import Recipe, recipe_from_values, recipe_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SETTINGS = sorted(Recipe().to_dict())
MODEL_SETTINGS = sorted(Recipe().to_dict()["model"])
quick = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(st.sampled_from(SETTINGS), VALUES)
def test_any_setting_of_a_recipe(name, value):
    try:
        recipe_from_values({"data": "digits-in-scenes", name: value}).check()
    except LficamError:
        return


@quick
@given(st.sampled_from(MODEL_SETTINGS), VALUES)
def test_any_setting_of_a_model(name, value):
    try:
        recipe_from_values({"data": "digits-in-scenes", "model": {name: value}}).check()
    except LficamError:
        return


@quick
@given(VALUES)
def test_any_recipe_file(tmp_path, values):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        recipe_from_values(recipe_values(str(path))).check()
    except LficamError:
        return


@quick
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.sampled_from(["config.json", "recipe.yaml"]))
def test_any_bytes_as_a_record(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    try:
        assert isinstance(read_record(tmp_path / name), dict)
    except RunError:
        return


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return lficam.create_model("cifar_resnet20").save_pretrained(tmp_path_factory.mktemp("run"))


@quick
@given(data=st.data(), value=VALUES)
def test_any_value_in_a_runs_configuration(saved, tmp_path, data, value):
    config = json.loads((saved / "config.json").read_text())
    config[data.draw(st.sampled_from(sorted(config)))] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not (tmp_path / "model.safetensors").exists():
        (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    try:
        lficam.load(tmp_path)
    except LficamError:
        return


WORDS = st.sampled_from(["train", "evaluate", "explain", "params", "scan", "report", "--data", "--out", "--json", "-h"])


@quick
@given(st.lists(WORDS | st.text(st.characters(exclude_characters="\0"), max_size=6), max_size=5))
def test_any_words_on_the_command_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err
