"""Handing models on: export, installation and prediction from a folder, as a user types them."""

import json
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from handed import CASES, NAME, make_model, small_encoder, small_sam

from samunet import api
from samunet.commands import run_command
from samunet.errors import SamunetError, UsageError
from samunet.files import write_json
from samunet.models.archive import open_archive
from samunet.sharing.private import public_instructions

FOLDER = f"{NAME}/samunetTrainer__samunetPlans__2d"
VARIABLES = ("samunet_raw", "samunet_preprocessed", "samunet_results", "samunet_checkpoints", "nnUNet_raw")


@pytest.fixture
def model(samunet_folders, tiny_dataset, monkeypatch):
    """A model of two folds in ``results``; ``samunet_folders`` is its root."""
    small_encoder(monkeypatch)
    tiny_dataset()
    return make_model(samunet_folders)


def export(path, *flags):
    return run_command("samunet_export_model_to_zip", ["-d", "998", "-o", str(path), *flags])


def masks(folder):
    found = {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}
    assert found
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(len(np.unique(mask)) > 1 for mask in first.values()), "masks of one value compare nothing"


def contents(archive):
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_masks_are_the_same_before_and_after_the_transfer(model, samunet_folders, tmp_path, monkeypatch, capsys):
    images = str(samunet_folders / "raw" / NAME / "imagesTs")
    assert run_command("samunet_predict", ["-i", images, "-o", str(tmp_path / "before"), "-d", "998"]) == 0
    assert export(tmp_path / "model.zip", "-licence", "CC-BY-4.0") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "model.zip")
    shutil.rmtree(samunet_folders / "results")
    (samunet_folders / "results").mkdir()
    assert run_command("samunet_install_pretrained_model_from_zip", [str(tmp_path / "model.zip")]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(samunet_folders / "results" / FOLDER)
    assert "licence: CC-BY-4.0" in output.err
    assert run_command("samunet_predict", ["-i", images, "-o", str(tmp_path / "after")]) == 0
    shutil.move(samunet_folders / "results" / FOLDER, tmp_path / "any_name")
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path / "any_name")
    assert (
        run_command("samunet_predict_from_modelfolder", ["-i", images, "-o", str(tmp_path / "moved"), "-m", "."]) == 0
    )
    before = masks(tmp_path / "before")
    assert_same(before, masks(tmp_path / "after"))
    assert_same(before, masks(tmp_path / "moved"))
    predictor = api.Predictor.from_zip(tmp_path / "model.zip")
    case = next(path for path in sorted((samunet_folders / "raw" / NAME / "imagesTs").iterdir()))
    name = case.name.replace("_0000", "")
    assert np.array_equal(predictor.predict_files([case])[0], before[name])
    image = sitk.ReadImage(str(case))
    array = predictor.predict_array(sitk.GetArrayFromImage(image)[None], image.GetSpacing()[::-1])
    assert np.array_equal(array, before[name])


def test_nothing_names_a_case_or_a_place(model, samunet_folders, tmp_path):
    decision = {"step": "largest component of organ", "chosen": False, "why": "Dice 0.9"}
    postprocessing = {"decoding": "argmax", "steps": [], "decisions": [decision]}
    private = {"weights": [{CASES[0]: 0.5}, {"organ": 1}], "cases": CASES, "from": str(tmp_path / "my data" / "x.json")}
    write_json(model.path / "postprocessing.json", postprocessing | private)
    run = json.loads((model.fold(0) / "run.json").read_text())
    write_json(model.fold(0) / "run.json", run | {"notes": {"by": "/home/me", CASES[0]: 1}})
    (model.path / "crossval_results_folds_0_1").mkdir()
    write_json(model.path / "crossval_results_folds_0_1" / "postprocessing.json", {"steps": []})
    place = f"{samunet_folders}/results/{FOLDER}"
    text = f"# the best\nsamunet_predict -i /data/me/x -o OUT\nsamunet_apply -pp_json '{place}/a b' -x /home/me/x.txt\n"
    (model.path.parent / "inference_instructions.txt").write_text(text + "rm -r /home/me\n")
    commands = [["samunet_apply", "-i", "/home/me/images", "-pp_json", f"{place}/a b"]]
    write_json(model.path.parent / "inference_information.json", {"commands": commands, "at": "/home/me/x"})
    for members in ("samunetPlans__2d___samunetPlans__2d", "samunetPlans__2d___other__2d"):
        write_json(model.path.parent / "ensembles" / f"ensemble___{members}___0_1" / "postprocessing.json", {})
    assert export(tmp_path / "model.zip") == 0
    files = contents(tmp_path / "model.zip")
    text = b"\n".join(content for name, content in files.items() if not name.endswith(".safetensors")).decode()
    assert [case for case in CASES if case in text] == []
    assert str(tmp_path) not in text
    assert "/home" not in text
    instructions = files[f"{NAME}/inference_instructions.txt"].decode()
    assert instructions == (
        "# the best\nsamunet_predict -i imagesTs -o OUT\n"
        f"samunet_apply -pp_json \"$samunet_results\"/'{FOLDER}/a b' -x x.txt\n"
    )
    information = json.loads(files[f"{NAME}/inference_information.json"])
    words = ["samunet_apply", "-i", "imagesTs", "-pp_json", f"$samunet_results/{FOLDER}/a b"]
    assert information == {"commands": [words]}
    assert [name for name in files if "ensemble" in name] == [
        f"{NAME}/ensembles/ensemble___samunetPlans__2d___samunetPlans__2d___0_1/postprocessing.json"
    ]
    assert json.loads(files[f"{FOLDER}/postprocessing.json"]) == postprocessing
    assert json.loads(files[f"{FOLDER}/crossval_results_folds_0_1/postprocessing.json"]) == {"steps": []}
    assert json.loads(files[f"{FOLDER}/fold_0/run.json"]).keys() == run.keys()
    assert json.loads(files[f"{FOLDER}/fold_0/validation/summary.json"])["mean"]["2"] == {"Dice": 0.25}
    assert not any(name.endswith(("training_log.json", ".png")) for name in files)
    api.install_model(tmp_path / "model.zip", tmp_path / "elsewhere")
    installed = {str(path.relative_to(tmp_path / "elsewhere")) for path in (tmp_path / "elsewhere").rglob("*.*")}
    commands = f"{NAME}/inference_instructions.txt"  # somebody else's, which nobody should run
    assert {name for name in files if name.startswith(NAME)} - installed == {commands}


def test_with_case_ids_everything_stays(model, tmp_path):
    (model.fold(0) / "validation" / "case_0.nii.gz").write_bytes(b"a mask")
    (model.fold(0) / "validation" / "case_1.tif").write_bytes(b"a mask of an image with another ending")
    write_json(model.fold(0) / "validation" / "case_1.json", {"spacing": [3, 1, 1]})
    (model.fold(0) / "validation" / "case_0.npz").write_bytes(b"probabilities")
    assert export(tmp_path / "model.zip", "--with_case_ids", "--exp_cv_preds") == 0
    files = contents(tmp_path / "model.zip")
    assert files[f"{FOLDER}/fold_0/run.json"] == (model.fold(0) / "run.json").read_bytes()
    assert files[f"{FOLDER}/fold_0/validation/case_0.nii.gz"] == b"a mask"
    names = {Path(name).name for name in files if "fold_0/validation/" in name}
    assert names == {"case_0.nii.gz", "case_1.tif", "case_1.json", "summary.json"}
    assert {f"{FOLDER}/fold_0/training_log.json", f"{FOLDER}/fold_0/progress.png"} <= files.keys()
    assert export(tmp_path / "other.zip", "--exp_cv_preds") == 2
    assert not (tmp_path / "other.zip").exists()
    assert len(api.install_model(tmp_path / "model.zip", tmp_path / "elsewhere")) == 1


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/results/a b", "\"$samunet_results\"/'a b'"),
        ("/results/$(rm -r x)", "\"$samunet_results\"/'$(rm -r x)'"),
        ("/results/o'brien", """"$samunet_results"/'o'"'"'brien'"""),
        ("/home/a b/case.json", "case.json"),
        ("/my masks/c d", "'c d'"),
        ("fold_0/run.json", "fold_0/run.json"),
    ],
)
def test_commands_name_no_place_and_run_nothing_else(folder, expected):
    text = f"samunet_predict -i {shlex.quote('/data/my patients/imagesTs')} -o {shlex.quote(folder)}\n"
    assert public_instructions(text, Path("/results")) == f"samunet_predict -i imagesTs -o {expected}\n"
    shell = subprocess.run(
        ["sh", "-c", f"printf %s {expected}"], capture_output=True, text=True, env={"samunet_results": "/results"}
    )
    inside = folder.startswith("/results") or not folder.startswith("/")
    assert shell.stdout == (folder if inside else Path(folder).name)


def test_nothing_is_said_per_case(model, tmp_path):
    assert export(tmp_path / "model.zip") == 0
    fingerprint = json.loads(contents(tmp_path / "model.zip")[f"{FOLDER}/dataset_fingerprint.json"])
    kept = {
        "foreground_intensity_properties_per_channel", "median_relative_size_after_cropping", "asymmetry",
        "physical_spacing",
    }  # fmt: skip
    assert {key for key, value in fingerprint.items() if value not in ([], {}, "")} == kept


def test_what_goes_in(model, samunet_folders, tmp_path, capsys):
    """Folds, checkpoints, and what is asked for but not there."""
    make_model(samunet_folders, folds=(0,), kinds=("final", "best"), plans_name="otherPlans")
    assert export(tmp_path / "a.zip", "-f", "1") == 0
    assert {re.search(r"fold_\w+", name)[0] for name in contents(tmp_path / "a.zip") if "fold_" in name} == {"fold_1"}
    assert export(tmp_path / "b.zip", "-p", "otherPlans", "-chk", "final", "best") == 0
    assert len([name for name in contents(tmp_path / "b.zip") if name.endswith(".safetensors")]) == 2
    capsys.readouterr()
    assert export(tmp_path / "c.zip", "-f", "1", "4") == 2
    assert "fold 4" in capsys.readouterr().err
    assert export(tmp_path / "c.zip", "-chk", "best") == 2
    assert export(tmp_path / "c.zip", "-c", "2d", "2d_448") == 2
    assert "2d_448" in capsys.readouterr().err
    assert not (tmp_path / "c.zip").exists()
    assert export(tmp_path / "c.zip", "-c", "2d", "2d_448", "-f", "1", "4", "--not_strict") == 0
    assert "2d_448" in capsys.readouterr().err
    before = (tmp_path / "c.zip").read_bytes()
    assert export(tmp_path / "c.zip") == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "c.zip").read_bytes() == before
    assert export(tmp_path / "c.zip", "-c", "2d", "-f", "1", "--force") == 0
    assert (tmp_path / "c.zip").read_bytes() == before, "the same model makes the same archive"
    assert export(tmp_path / "model.tar") == 2


def test_installing_over_another_model(model, tmp_path, samunet_folders, capsys):
    assert export(tmp_path / "model.zip", "-f", "0") == 0
    mine = (model.fold(0) / "run.json").read_bytes()
    assert run_command("samunet_install_pretrained_model_from_zip", [str(tmp_path / "model.zip")]) == 1
    message = capsys.readouterr().err
    assert "fold_0, fold_1" in message
    assert "--force" in message
    assert (model.fold(0) / "run.json").read_bytes() == mine
    assert run_command("samunet_install_pretrained_model_from_zip", [str(tmp_path / "model.zip"), "--force"]) == 0
    assert not model.fold(1).exists()
    assert run_command("samunet_install_pretrained_model_from_zip", [str(tmp_path / "model.zip")]) == 0, (
        "the same once more"
    )
    assert "was there already" in capsys.readouterr().err


def test_instructions_go_along_only_with_what_they_need(model, tmp_path, capsys):
    chosen = [{"configuration": "2d", "trainer": "samunetTrainer", "plans_identifier": "samunetPlans"}]
    information = {"folds": [0, 1], "best_model_or_ensemble": {"selected_model_or_models": chosen}}
    write_json(model.path.parent / "inference_information.json", information)
    (model.path.parent / "inference_instructions.txt").write_text("samunet_predict -f 0 1\n")
    pair = f"ensembles/ensemble___{'___'.join(['samunetPlans__2d'] * 2)}___0_1"
    write_json(model.path.parent / pair / "postprocessing.json", {})
    beside = {f"{NAME}/{name}" for name in ("inference_information.json", "inference_instructions.txt")}
    beside.add(f"{NAME}/{pair}/postprocessing.json")
    assert export(tmp_path / "all.zip") == 0
    assert beside <= contents(tmp_path / "all.zip").keys()
    capsys.readouterr()
    assert export(tmp_path / "one.zip", "-f", "1") == 0
    assert beside & contents(tmp_path / "one.zip").keys() == set()
    assert "fold 0 of samunetTrainer__samunetPlans__2d" in capsys.readouterr().err
    write_json(model.path.parent / "inference_information.json", information | {"best_model_or_ensemble": {
        "selected_model_or_models": [*chosen, chosen[0] | {"configuration": "2d_448"}]}})  # fmt: skip
    assert export(tmp_path / "other.zip") == 0
    assert f"{NAME}/inference_instructions.txt" not in contents(tmp_path / "other.zip")


def test_the_receivers_choice_of_a_configuration_is_kept(model, tmp_path, capsys):
    ensemble = f"ensembles/ensemble___{'___'.join(['samunetPlans__2d'] * 2)}___0_1"
    for name in ("inference_information.json", f"{ensemble}/postprocessing.json", f"{ensemble}/summary.json"):
        write_json(model.path.parent / name, {"of": "the zip"})
    (model.path.parent / "inference_instructions.txt").write_text("# of the zip\n")
    assert export(tmp_path / "model.zip") == 0
    (model.path.parent / ensemble / "summary.json").unlink()
    for name in ("inference_information.json", f"{ensemble}/postprocessing.json"):
        write_json(model.path.parent / name, {"of": "the receiver"})
    (model.path.parent / "inference_instructions.txt").unlink()
    write_json(model.fold(0) / "run.json", {"encoder": "vit_h"})
    before = {path: path.read_bytes() for path in model.path.parent.rglob("*.json") if model.path not in path.parents}
    capsys.readouterr()
    assert run_command("samunet_install_pretrained_model_from_zip", [str(tmp_path / "model.zip"), "--force"]) == 0
    told = capsys.readouterr().err
    assert "inference_information.json" in told
    assert "kept as they are" in told
    after = {path: path.read_bytes() for path in model.path.parent.rglob("*.json") if model.path not in path.parents}
    assert after == before, "half of what belongs together would be worse than none"
    assert not (model.path.parent / "inference_instructions.txt").exists()
    assert json.loads((model.fold(0) / "run.json").read_text())["encoder"] == "small"


def test_licence_travels_on(model, tmp_path, monkeypatch):
    assert export(tmp_path / "model.zip", "-licence", "CC0-1.0") == 0
    api.install_model(tmp_path / "model.zip", tmp_path / "results2")
    monkeypatch.setenv("samunet_results", str(tmp_path / "results2"))
    assert api.export_model(998, tmp_path / "again.zip").licence == "CC0-1.0"


def test_base_weights_by_reference_and_whole(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    weights = small_sam(tmp_path, monkeypatch)
    small_encoder(monkeypatch)
    tiny_dataset()
    make_model(samunet_folders, "vit_b")
    images = str(samunet_folders / "raw" / NAME / "imagesTs")
    assert run_command("samunet_predict", ["-i", images, "-o", str(tmp_path / "before"), "--disable_tta"]) == 0
    assert export(tmp_path / "reference.zip") == 0
    assert "--with_base" in capsys.readouterr().err
    assert export(tmp_path / "whole.zip", "--with_base") == 0
    files = contents(tmp_path / "whole.zip")
    assert len([name for name in files if name.startswith("base_weights/")]) == 1, "one for both folds"
    manifests = [contents(tmp_path / f"{name}.zip")["samunet_model.json"] for name in ("reference", "whole")]
    reference, whole = map(json.loads, manifests)
    assert reference["models"][0]["base"]["file"] == weights.name
    assert reference["models"][0]["base"]["copy"] is None
    assert whole["models"][0]["base"]["sha256"] == reference["models"][0]["base"]["sha256"]
    weights.rename(tmp_path / "away.pth")
    capsys.readouterr()
    folders = {}
    for name in ("reference", "whole"):
        (folders[name],) = api.install_model(tmp_path / f"{name}.zip", tmp_path / name)
        arguments = ["-i", images, "-o", str(tmp_path / f"after {name}"), "-m", str(folders[name]), "--disable_tta"]
        assert run_command("samunet_predict_from_modelfolder", arguments) == (1 if name == "reference" else 0)
    message = capsys.readouterr().err
    assert weights.name in message
    assert "needs its base weights" in message
    assert_same(masks(tmp_path / "before"), masks(tmp_path / "after whole"))
    (tmp_path / "away.pth").rename(weights.parent / "any_name.pth")
    arguments = [*arguments[:2], "-o", str(tmp_path / "after reference"), "-m", str(folders["reference"])]
    arguments.append("--disable_tta")
    assert run_command("samunet_predict_from_modelfolder", arguments) == 0
    assert_same(masks(tmp_path / "before"), masks(tmp_path / "after reference"))
    weights.parent.rename(tmp_path / "nothing here")
    predictor = api.Predictor.from_zip(tmp_path / "whole.zip", folds=[1])
    assert len(predictor.slices.models) == 1
    with pytest.raises(SamunetError, match="needs its base weights"):
        api.Predictor.from_zip(tmp_path / "reference.zip")


@pytest.mark.slow
def test_trained_folds_there_and_back(samunet_folders, tiny_dataset, tmp_path, monkeypatch):
    """What training writes, SAM's adapters among it, is all that prediction needs elsewhere."""
    small_sam(tmp_path, monkeypatch)
    images = str(tiny_dataset() / "imagesTs")
    assert (
        run_command(
            "samunet_plan_and_preprocess", ["-d", "998", "-encoder", "vit_b", "-image_size", "128", "-lora_rank", "2"]
        )
        == 0
    )
    kinds, exact = ("final", "best"), ("--save_probabilities", "--disable_tta")
    for fold in ("0", "1"):
        assert run_command("samunet_train", ["998", "2d", fold, "--iterations", "4", "--batch_size", "2"]) == 0
    for kind in kinds:
        assert (
            run_command("samunet_predict", ["-i", images, "-o", str(tmp_path / f"before {kind}"), "-chk", kind, *exact])
            == 0
        )
    assert export(tmp_path / "model.zip", "--with_base", "-chk", "final", "best") == 0
    for folder in ("raw", "preprocessed", "results", "checkpoints"):
        (samunet_folders / folder).rename(tmp_path / f"gone {folder}")
    images = images.replace("/raw/", "/gone raw/")
    monkeypatch.setenv("samunet_results", str(tmp_path / "new"))
    assert run_command("samunet_install_pretrained_model_from_zip", [str(tmp_path / "model.zip")]) == 0
    for kind in kinds:
        assert (
            run_command("samunet_predict", ["-i", images, "-o", str(tmp_path / f"after {kind}"), "-chk", kind, *exact])
            == 0
        )
        paths = sorted((tmp_path / f"before {kind}").glob("*.npz"))
        assert len(paths) == 2
        for path in paths:
            before = np.load(path)["probabilities"]
            assert np.array_equal(before, np.load(tmp_path / f"after {kind}" / path.name)["probabilities"])
            assert np.ptp(before[1]) > 0, "equal probabilities would compare nothing"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("results/" + FOLDER + "/fold_0", "give the model's folder"),
        ("results", "models in it"),
        ("results/nowhere", "does not exist"),
        ("model.zip", "install_model"),
        ("raw", "no trained model"),
    ],
)
def test_what_is_no_model_folder(model, samunet_folders, tmp_path, path, message):
    assert export(tmp_path / "model.zip") == 0
    with pytest.raises(UsageError) as error:
        api.Predictor.from_folder(samunet_folders / path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((1, 4, 24), (3, 1, 1), "channels, z, y, x"),
        ((2, 4, 24, 20), (3, 1, 1), "1 channels"),
        ((1, 4, 24, 20), None, "spacing"),
        ((1, 4, 24, 20), (3, 1), "three positive"),
        ((1, 4, 24, 20), (3, 1, 0), "three positive"),
        ((1, 0, 24, 20), (3, 1, 1), "shape"),
    ],
)
def test_arrays_that_do_not_fit(model, shape, spacing, message):
    predictor = api.Predictor.from_folder(model.path, [0])
    with pytest.raises(UsageError, match=message):
        predictor.predict_array(np.zeros(shape), spacing)
    with pytest.raises(UsageError, match="finite"):
        predictor.predict_array(np.full((1, 4, 24, 20), np.nan), (3, 1, 1))


def test_errors_beside_an_archive_are_not_its_own(model, tmp_path):
    assert export(tmp_path / "model.zip") == 0
    with pytest.raises(RuntimeError, match="out of memory"), open_archive(tmp_path / "model.zip"):
        raise RuntimeError("CUDA out of memory")


def test_archives_with_several_models_are_asked_which(model, samunet_folders, tmp_path):
    other = shutil.copytree(model.path, model.path.with_name("samunetTrainer__samunetPlans__2d_448"))
    plans = json.loads((other / "plans.json").read_text())
    plans["configurations"]["2d_448"] = plans["configurations"]["2d"]
    write_json(other / "plans.json", plans)
    assert export(tmp_path / "model.zip") == 0
    with pytest.raises(UsageError, match=r"2 models.*2d, 2d_448"):
        api.Predictor.from_zip(tmp_path / "model.zip")
    assert api.Predictor.from_zip(tmp_path / "model.zip", [0], configuration="2d").network.encoder == "small"
    assert len(api.install_model(tmp_path / "model.zip", tmp_path / "elsewhere")) == 2
