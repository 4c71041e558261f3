"""Whether files that somebody else made are what a model needs, found out without running or believing them."""

from __future__ import annotations

from pathlib import Path

from samunet.errors import SamunetError
from samunet.files import read_json
from samunet.models.folder import ModelFolder
from samunet.models.manifest import ModelEntry
from samunet.preprocessing.run import check_channels


def check_content(file: Path) -> None:
    """Whether a tensor or JSON file is what its ending says.

    Raises:
        SamunetError: If not; what is to be said after the file's name.
    """
    if file.name.endswith(".safetensors"):
        from safetensors import safe_open

        from samunet.tensors import check_numbers

        try:
            with safe_open(file, "pt") as stream:
                for name in stream.keys():  # noqa: SIM118 (it is no dict)
                    check_numbers({name: stream.get_tensor(name)}, "it")
        except SamunetError:
            raise
        except Exception as error:  # the border to a stranger's file
            raise SamunetError(f"is not in safetensors' format: {error}") from error
    elif file.name.endswith(".json"):
        try:
            read_json(file)
        except SamunetError as error:
            raise SamunetError(error.message.removeprefix(f"{file} ")) from error


def check_model(folder: Path, entry: ModelEntry) -> None:
    """Read everything of a model but its tensors, as prediction would.

    Raises:
        SamunetError: If a file does not hold what it should.
    """
    model = ModelFolder(folder, entry.folder)
    check_channels(model.configuration, model.description, f"{entry.folder}/dataset.json")
    for fold in entry.folds:
        model.run(fold)
