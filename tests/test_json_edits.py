"""JSON of a finished project with something wrong in it: each is read as it is, or refused with words."""

import json
import os
import random

import pytest
from handed import NAME, make_model, small_encoder

from samunet.commands import run_command
from samunet.files import write_json
from samunet.training.trainer import Trainer

pytestmark = pytest.mark.full_network

MODEL = f"results/{NAME}/samunetTrainer__samunetPlans__2d"
# The commands that read each file.
READ_BY = {
    f"raw/{NAME}/dataset.json": ("plan", "evaluate", "overlays"),
    f"raw/{NAME}/splits_final.json": ("plan", "train"),
    f"preprocessed/{NAME}/samunetPlans.json": ("preprocess", "train", "overlays"),
    f"preprocessed/{NAME}/dataset_fingerprint.json": ("plan", "train"),
    f"preprocessed/{NAME}/splits_final.json": ("plan", "train", "best"),
    f"preprocessed/{NAME}/dataset.json": ("train",),
    f"preprocessed/{NAME}/samunetPlans_2d/case_0.json": ("preprocess", "train", "overlays"),
    f"{MODEL}/plans.json": ("predict", "report", "export"),
    f"{MODEL}/dataset.json": ("predict", "report", "export"),
    f"{MODEL}/dataset_fingerprint.json": ("export",),
    f"{MODEL}/postprocessing.json": ("predict", "postprocess"),
    f"{MODEL}/fold_0/run.json": ("predict", "report", "export", "train", "best"),
    f"{MODEL}/fold_0/training_log.json": ("report",),
    f"{MODEL}/fold_0/calibration.json": ("predict", "report", "export"),
    f"{MODEL}/fold_0/validation/summary.json": ("report", "export", "best", "train"),
    f"results/{NAME}/inference_information.json": ("predict", "export"),
    "preds/predict_from_raw_data_args.json": ("report of preds", "predict"),
    "preds/dataset.json": ("report of preds", "evaluate"),
    "preds/plans.json": ("report of preds",),
    "preds/quality.json": ("report of preds",),
    "preds/summary.json": ("report of preds",),
    "preds/uncertainty/test_0.json": ("predict",),
    "preds/samunet_record/test_0.nii.gz.json": ("predict",),
    "Task01_Tiny/dataset.json": ("msd",),
}
COMMANDS = {
    "plan": ("samunet_plan_and_preprocess", "-d 998 -encoder small -image_size 128"),
    "preprocess": ("samunet_preprocess", "-d 998"),
    "train": ("samunet_train", "998 2d 0 --val"),
    "evaluate": ("samunet_evaluate_folder", f"raw/{NAME}/labelsTs preds -o scores.json"),
    "overlays": ("samunet_plot_overlay_pngs", "-d 998 -o pictures -c 2d"),
    "predict": ("samunet_predict", f"-i raw/{NAME}/imagesTs -o preds -d 998 --save_uncertainty --continue_prediction"),
    "report": ("samunet_report", f"{MODEL} -o report.html"),
    "report of preds": ("samunet_report", "preds"),
    "export": ("samunet_export_model_to_zip", "-d 998 -o model.zip --not_strict --force"),
    "best": ("samunet_find_best_configuration", "998 -c 2d -f 0 1"),
    "postprocess": ("samunet_apply_postprocessing", f"-i preds -o smoothed -pp_json {MODEL}/postprocessing.json"),
    "msd": ("samunet_convert_MSD_dataset", "-i Task01_Tiny -overwrite_id 77"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A dataset planned, a model of two folds, a prediction with its scores; the current folder is theirs."""
    from conftest import samunet_folders, tiny_dataset

    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        samunet_folders.__wrapped__(root, patch)
        patch.chdir(root)
        patch.setenv("samunet_checkpoints", str(root))
        small_encoder(patch)
        patch.setattr(Trainer, "train", lambda self: None)
        raw = tiny_dataset.__wrapped__(root)()
        model = make_model(root)
        assert run_command("samunet_preprocess", ["-d", "998"]) == 0
        write_json(raw / "splits_final.json", json.loads((root / f"preprocessed/{NAME}/splits_final.json").read_text()))
        points = [{"iteration": 0, "loss": None, "dice": 0.1}, {"iteration": 4, "loss": 1.5, "dice": 0.5}]
        write_json(model.fold(0) / "training_log.json", points)
        splits = json.loads((raw / "splits_final.json").read_text())
        for fold in (0, 1):
            run = json.loads((model.fold(fold) / "run.json").read_text())
            write_json(model.fold(fold) / "run.json", run | {"training_cases": splits[fold]["train"]})
        assert run_command("samunet_train", ["998", "2d", "0", "1", "--val"]) == 0
        doubt = {"entropy": 0.2, "tta_disagreement": 0.1, "Dice": 0.5, "in_reference": True}
        cases = [{key: doubt | {"entropy": index / 9} for key in ("1", "2")} for index in range(6)]
        for fold in (0, 1):
            write_json(model.fold(fold) / "calibration.json", {"tta": True, "cases": cases})
        step = {"rule": "keep_largest_component", "of": "organ", "values": [1], "removed_voxels_become": [0]}
        write_json(model.path / "postprocessing.json", {"decoding": "argmax", "steps": []} | {"decisions": step})
        chosen = [{"configuration": "2d", "plans_identifier": "samunetPlans"}]
        best = {"folds": [0, 1], "best_model_or_ensemble": {"selected_model_or_models": chosen}}
        write_json(root / "results" / NAME / "inference_information.json", best)
        predicted = run_command(
            "samunet_predict", ["-i", str(raw / "imagesTs"), "-o", "preds", "-d", "998", "--save_uncertainty"]
        )
        assert predicted == 0
        assert run_command("samunet_evaluate_folder", [str(raw / "labelsTs"), "preds"]) == 0
        (root / "Task01_Tiny").mkdir()
        task = {
            "name": "Tiny", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ"},
            "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "test": [],
        }  # fmt: skip
        write_json(root / "Task01_Tiny" / "dataset.json", task)
        yield root


def places(value, path=()):
    """Where everything in JSON is, as keys and indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


WRONG = (None, True, -1, 0, 1e308, 10**400, "", "\x1b[2J\u202e", [], {}, [[]], {"a": {}}, deep(90), deep(200))


def edited(content, random):
    """One edit of the content of a file: bytes."""
    text = json.dumps(content)
    kind = random.randrange(8)
    if kind == 0:
        return random.choice([b"", b"null", b"[]", b"{}", b"3", b'"x"', b"[" * 100_000, b"\xff\xfe", b"\x00" * 9])
    if kind == 1:
        return text.encode()[: random.randrange(len(text))]
    if kind == 2:
        return text.encode(random.choice(["utf-8-sig", "utf-16"]))
    content = json.loads(text)
    path = random.choice(list(places(content)))
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if kind == 3:
        del holder[path[-1]]
    elif kind == 4 and isinstance(holder, dict):
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
    elif kind == 5 and isinstance(holder[path[-1]], (str, int, float)):
        holder[path[-1]] = str(holder[path[-1]]) + "x" if random.random() < 0.5 else [holder[path[-1]]]
    else:
        holder[path[-1]] = random.choice(WRONG)
    return json.dumps(content).encode()


def wordless(command, capsys):
    """What a command says where nobody worded it; None where it is done or says what is wrong."""
    name, words = COMMANDS[command]
    capsys.readouterr()
    try:
        status = run_command(name, [*words.split(), "--verbose"])
    except BaseException as error:  # nothing may leave a command
        return repr(error)
    said = capsys.readouterr().err
    if status == 0:
        return None
    names = ("KeyError", "TypeError", "ValueError", "AttributeError", "IndexError", "OverflowError", "RecursionError")
    last = [line for line in said.splitlines() if line.startswith("error: ")]
    plain = last and not last[-1].removeprefix("error: ").split(":")[0].endswith(("Error", "Exception"))
    return None if plain and not last[-1].startswith(tuple(f"error: {name}" for name in names)) else said[-1500:]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_an_edit_all_is_done(project, capsys, command):
    name, words = COMMANDS[command]
    assert run_command(name, words.split()) == (1 if command == "msd" else 0), (
        capsys.readouterr().err
    )  # its images lack


@pytest.mark.parametrize("name", READ_BY)
def test_an_edit_is_read_or_refused_with_words(project, capsys, name):
    kept = {file: file.read_bytes() for file in project.rglob("*.json")}
    generator = random.Random(f"{name} {os.environ.get('SAMUNET_FUZZ_SEED', 1)}")
    content, wrong = json.loads(kept[project / name]), []
    for _ in range(int(os.environ.get("SAMUNET_JSON_EDITS", "1"))):
        change = edited(content, generator)
        for command in READ_BY[name]:
            (project / name).write_bytes(change)
            said = wordless(command, capsys)
            if said:
                wrong.append((command, change[:300], said))
            for file, before in kept.items():
                file.write_bytes(before)
    assert wrong == []
