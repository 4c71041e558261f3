"""Which trained model and which folds a prediction takes; folders with the files that this looks at, all empty."""

import shlex

import pytest

from samunet.commands import build_parser
from samunet.commands.typed import as_typed
from samunet.errors import UsageError
from samunet.files import write_json
from samunet.models.choose import choose_model, parse_folds
from samunet.models.folder import ModelFolder, model_folders
from samunet.sharing.export import ExportOptions, _selections

NAME = "Dataset998_Tiny"


@pytest.fixture
def trained(samunet_folders):
    """A function that makes a model's folder with two finished folds."""

    def make(name="samunetTrainer__samunetPlans__2d"):
        folder = samunet_folders / "results" / NAME / name
        for file in ("plans.json", "fold_0/checkpoint_final.safetensors", "fold_1/checkpoint_final.safetensors"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        return ModelFolder(folder)

    return make


def test_a_fold_named_twice_is_refused(trained):
    model = trained()
    assert parse_folds(model, ["0", 1], "final") == [0, 1]
    with pytest.raises(UsageError, match="fold 0 is named twice"):
        parse_folds(model, ["0", "0", "1"], "final")


def test_suggested_commands_can_be_copied(trained, tmp_path):
    trained()
    trained("samunetTrainer__samunetPlans__2d_448")
    source = tmp_path / "my images" / "imagesTs"
    with pytest.raises(UsageError) as error:
        choose_model(source, None, None, None, "final")
    typed = as_typed(str(error.value), build_parser("samunet_predict"))
    commands = [shlex.split(line) for line in typed.splitlines() if line.startswith("  samunet_predict")]
    expected = ["samunet_predict", "-i", str(source), "-o", "preds", "-d", NAME, "-c"]
    assert [command[: len(expected)] for command in commands] == [expected] * 2


def test_renamed_folders_are_no_candidates(trained):
    model = trained()
    old = trained("samunetTrainer__samunetPlans__2d__old")
    assert choose_model(model.path, "998", None, None, "final")[0] == model
    assert model_folders(model.path.parent) == [model]
    assert _selections(model.path.parent, ExportOptions())[0].model == model
    write_json(old.fold(0) / "run.json", {"configuration": "2d"})
    assert old.configuration_name == "2d"
