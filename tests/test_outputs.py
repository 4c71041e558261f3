"""Nothing of a person's is written over, masks of two models are never mixed, and one bad case stops nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bad_input import PREDICT, STORE, hashes, make_project, truncate, voxel
from bad_input import image as change_image

from samunet import api
from samunet.dataset import outputs
from samunet.errors import CasesFailed, SamunetError, UsageError
from samunet.inference.postprocessing import Postprocessing

pytestmark = pytest.mark.full_network

project = pytest.fixture(make_project)

RAW = "raw/Dataset998_Tiny"
MODEL = "results/Dataset998_Tiny/samunetTrainer__samunetPlans__2d"
SCORE = f"evaluate_folder {RAW}/labelsTs preds"


def to(folder):
    return PREDICT.replace("-o preds", f"-o {folder}")


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def draw(file, value=1):
    """A person corrects a mask."""
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    array[0, :3, :3] = value
    edited = sitk.GetImageFromArray(array)
    edited.CopyInformation(image)
    sitk.WriteImage(edited, str(file))


def mask(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 4, 4), value, np.uint8)), str(path))
    return path


@pytest.fixture
def masks(project, capsys):
    """A project with two predicted masks in ``preds``."""
    assert project.run(PREDICT) == 0
    capsys.readouterr()
    return project


def refused(project, command, says, capsys, status=2):
    """The command changes no file and says why."""
    before = hashes(project.root)
    assert project.run(command) == status, command
    printed = capsys.readouterr().err
    assert says in printed, printed
    assert "\n  -> " in printed
    assert hashes(project.root) == before


PLACES = [
    (f"{RAW}/labelsTr", "lies in the raw dataset"),
    (f"{RAW}/labelsTs/test_0.nii.gz", "lies in the raw dataset"),
    (f"{RAW}/new/folder", "lies in the raw dataset"),
    (RAW, "is the raw dataset"),
    ("link", "lies in the raw dataset"),
    (MODEL, "holds a trained model"),
    (f"{MODEL}/fold_0", "holds a trained fold"),
    (f"{MODEL}/fold_0/validation", "holds the validation of a trained fold"),
    ("preprocessed/Dataset998_Tiny", "holds a preprocessed dataset"),
    ("preprocessed/Dataset998_Tiny/samunetPlans_2d", "holds a preprocessed dataset"),
    ("annotations", "1 images or masks that samunet did not write (a.nii.gz)"),
    ("annotations/a.nii.gz", "samunet did not write it"),
    ("unfinished", "holds imagesTr or labelsTr"),
    ("arrays", "1 images or masks that samunet did not write (test_0.npz)"),
    ("described", "a dataset.json that samunet did not write"),
]


def test_no_prediction_goes_among_a_persons_files(project, capsys):
    mask(project.root / "annotations" / "a.nii.gz")
    (project.root / "arrays").mkdir()
    (project.root / "arrays" / "test_0.npz").write_bytes(b"scan")
    (project.root / "unfinished" / "imagesTr").mkdir(parents=True)
    (project.root / "described").mkdir()
    shutil.copy2(project.root / RAW / "dataset.json", project.root / "described")
    (project.root / "link").symlink_to(project.root / RAW / "labelsTs")
    for place, says in PLACES:
        one = f"predict -d 998 -i {RAW}/imagesTs/test_0_0000.nii.gz --disable_tta -o {place}"
        refused(project, one if place.endswith(".gz") else to(place), says, capsys)
    for place, says in PLACES[:10]:  # which --overwrite does not allow
        one = f"predict -d 998 -i {RAW}/imagesTs/test_0_0000.nii.gz --disable_tta -o {place}"
        refused(project, (one if place.endswith(".gz") else to(place)) + " --overwrite", says, capsys)


def test_no_prediction_goes_among_its_images(project, capsys):
    shutil.copytree(project.root / RAW / "imagesTs", project.root / "scans")
    (project.root / "same").symlink_to(project.root / "scans")
    for given, output in (("scans", "scans"), ("scans", "same"), ("same", "scans"), ("scans", "SCANS")):
        refused(project, f"predict -d 998 -i {given} -o {output}", "is also an input", capsys)
    refused(project, "predict -d 998 -i scans -o scans/preds", "lies in the input folder", capsys)


def test_other_commands_do_not_write_there_either(masks, capsys):
    shutil.copytree(masks.root / "preds", masks.root / "others")
    Postprocessing().write(masks.root / "pp.json")
    (masks.root / "notes.json").write_text("{}")
    (masks.root / "sam.pth").write_bytes(b"weights")
    (masks.root / "model.onnx").write_bytes(b"graph")
    there = f"{RAW}/labelsTr"
    for command, says in (
        (f"ensemble -i preds others -o {there}", "raw dataset"),
        ("ensemble -i preds others -o preds", "is also an input"),
        (f"apply_postprocessing -i preds -pp_json pp.json -o {there}", "raw dataset"),
        (f"apply_postprocessing -i preds -pp_json pp.json -o {MODEL}", "trained model"),
        ("apply_postprocessing -i preds -pp_json pp.json -o preds/x", "lies in the input"),
        (f"determine_postprocessing -i {there} -ref {there} -dataset_json {RAW}/dataset.json", "raw dataset"),
        (f"plot_overlay_pngs -d 998 -o {RAW}/imagesTs", "raw dataset"),
        (f"plot_overlay_pngs -d 998 -o {MODEL}/fold_0", "trained fold"),
        (f"report preds -o {RAW}/report.html", "raw dataset"),
        ("report preds -o notes.json", "holds something else"),
        (f"{SCORE} -o {RAW}/dataset.json", "raw dataset"),
        (f"evaluate_folder {RAW}/labelsTr {RAW}/labelsTr", "raw dataset"),
        (f"{SCORE} -o preds/dataset.json", "holds something else"),
        (f"evaluate_simple {RAW}/labelsTs preds -l 1 -o notes.json", "holds something else"),
        (f"accumulate_crossval_results 998 -o {RAW}/new", "raw dataset"),
        (f"export_model_to_zip -d 998 -o {RAW}/model.zip", "raw dataset"),
        (f"merge_adapter 998 2d 0 -o {RAW}/sam.pth", "raw dataset"),
        ("merge_adapter 998 2d 0 -o sam.pth", "sam.pth exists"),
        ("export_onnx 998 2d 0 -o model.onnx", "model.onnx exists"),
        (f"pretrain -d 998 --out {MODEL} --time_budget 1s", "trained model"),
        (f"pretrain -d 998 --out {RAW} --time_budget 1s", "raw dataset"),
        (f"demo --folder {RAW}/demo", "raw dataset"),
    ):
        refused(masks, command, says, capsys)
    (masks.root / "archive.zip").write_bytes(b"")
    with pytest.raises(UsageError, match="raw dataset"):
        api.install_model(masks.root / "archive.zip", masks.root / RAW)
    with pytest.raises(UsageError, match="raw dataset"):
        api.evaluate(
            predictions=masks.root / "preds",
            references=masks.root / RAW / "labelsTs",
            output=masks.root / RAW / "summary.json",
        )


def test_ones_own_masks_are_replaced_and_edited_ones_kept(masks, capsys):
    assert masks.run(PREDICT) == 0
    draw(masks.root / "preds" / "test_1.nii.gz")
    edited = read(masks.root / "preds" / "test_1.nii.gz")
    refused(masks, PREDICT, "edited since samunet wrote them", capsys, status=1)
    assert masks.run(PREDICT + " --continue_prediction") == 0
    assert "1 masks were edited" in capsys.readouterr().err
    assert np.array_equal(read(masks.root / "preds" / "test_1.nii.gz"), edited)
    assert masks.run(PREDICT + " --overwrite") == 0
    assert not np.array_equal(read(masks.root / "preds" / "test_1.nii.gz"), edited)
    # The same in a single file.
    one = f"predict -d 998 -i {RAW}/imagesTs/test_0_0000.nii.gz --disable_tta -o one/mask.nii.gz"
    assert masks.run(one) == 0
    assert masks.run(one) == 0
    draw(masks.root / "one" / "mask.nii.gz")
    refused(masks, one, "was edited since", capsys)
    assert masks.run(one + " --overwrite") == 0


def test_pictures_replace_pictures_only(masks, capsys):
    assert masks.run("plot_overlay_pngs -d 998 -o overlays") == 0
    assert masks.run("plot_overlay_pngs -d 998 -o overlays") == 0
    file = masks.root / "overlays" / "case_0.png"
    outputs.finish(file)
    refused(masks, "plot_overlay_pngs -d 998 -o overlays", "are no pictures (case_0.png)", capsys, status=1)
    assert masks.run("plot_overlay_pngs -d 998 -o overlays --overwrite") == 0


def test_masks_in_the_folder_for_postprocessed_ones_stay(masks, capsys):
    labels = f"{RAW}/labelsTs"
    mask(masks.root / "preds" / "postprocessed" / "mine.nii.gz")
    refused(masks, f"determine_postprocessing -i preds -ref {labels}", "--remove_postprocessed", capsys)
    assert masks.run(f"determine_postprocessing -i preds -ref {labels} --remove_postprocessed") == 0
    shutil.rmtree(masks.root / "preds" / "postprocessed")
    for _ in range(2):
        assert masks.run(f"determine_postprocessing -i preds -ref {labels}") == 0


def as_version_0_1_0(folder):
    """What that version left beside its masks."""
    shutil.rmtree(folder / outputs.RECORD)
    file = folder / outputs.ARGUMENTS
    arguments = json.loads(file.read_text())
    del arguments["samunet_version"]
    file.write_text(json.dumps(arguments))


def test_folders_of_version_0_1_0_are_known(masks, capsys):
    as_version_0_1_0(masks.root / "preds")
    before = (masks.root / "preds" / "test_0.nii.gz").stat().st_mtime_ns
    before_it = hashes(masks.root)
    assert masks.run(PREDICT.replace(" --disable_tta", " --continue_prediction")) == 1
    assert "test-time augmentation off then" in capsys.readouterr().err
    assert hashes(masks.root).items() >= before_it.items()  # only records were added
    assert masks.run(PREDICT + " --continue_prediction") == 0
    assert (masks.root / "preds" / "test_0.nii.gz").stat().st_mtime_ns == before
    as_version_0_1_0(masks.root / "preds")
    (masks.root / "preds" / "test_1.nii.gz").write_bytes(b"")
    assert masks.run(PREDICT + " --continue_prediction") == 0
    assert read(masks.root / "preds" / "test_1.nii.gz").any()
    assert (masks.root / "preds" / "test_0.nii.gz").stat().st_mtime_ns == before
    as_version_0_1_0(masks.root / "preds")
    assert masks.run(PREDICT) == 0
    assert (masks.root / "preds" / "test_0.nii.gz").stat().st_mtime_ns != before
    (masks.root / "preds" / outputs.ARGUMENTS).write_text('{"list_of_lists_or_source_folder": "imagesTs"}')  # nnU-Net's
    shutil.rmtree(masks.root / "preds" / outputs.RECORD)
    refused(masks, PREDICT, "did not write", capsys)


CONTINUED = PREDICT + " --continue_prediction"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (CONTINUED.replace(" --disable_tta", ""), "test-time augmentation off then, on now"),
        (CONTINUED + " -step_size 0.25", "step_size 0.5 then, 0.25 now"),
        (CONTINUED + " -chk best", "checkpoint final then, best now"),
    ],
)
def test_other_options_are_never_mixed(masks, capsys, command, says):
    (masks.root / "preds" / "test_1.nii.gz").unlink()
    refused(masks, command, says, capsys, status=1)
    assert masks.run(command.replace(" --continue_prediction", "")) == 0
    assert masks.run(command) == 0
    assert "2 were there already" in capsys.readouterr().err


def test_another_model_is_never_mixed_in(masks, capsys):
    folder = masks.root / MODEL
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    refused(masks, CONTINUED, "folds 0 then, 0 1 now", capsys, status=1)
    assert masks.run(CONTINUED + " -f 0") == 0
    one = f"predict -d 998 -i {RAW}/imagesTr/case_0_0000.nii.gz -o preds --disable_tta --continue_prediction"
    refused(masks, one, "folds 0 then, 0 1 now", capsys, status=1)  # nor beside masks of other cases
    # The same fold, trained anew: the name is the same, the content is not.
    best = folder / "fold_0" / "checkpoint_best.safetensors"
    final = folder / "fold_0" / "checkpoint_final.safetensors"
    changed = bytearray(final.read_bytes())
    changed[-1] ^= 1
    final.unlink()
    final.write_bytes(changed)
    refused(masks, CONTINUED + " -f 0", "the model's files changed since", capsys, status=1)
    final.unlink()
    os.link(best, final)
    steps = Postprocessing((), "dice")
    steps.write(folder / "postprocessing.json")
    refused(masks, CONTINUED + " -f 0", "postprocessing none then, decoded for", capsys, status=1)


def test_a_moved_model_is_the_same(masks, capsys):
    shutil.copytree(masks.root / MODEL, masks.root / "elsewhere__samunetPlans__2d")
    command = CONTINUED.replace("predict -d 998", "predict_from_modelfolder -m elsewhere__samunetPlans__2d")
    assert masks.run(command) == 0
    assert "2 were there already" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_damaged_masks_are_made_again(masks, share):
    expected = read(masks.root / "preds" / "test_1.nii.gz")
    kept = (masks.root / "preds" / "test_0.nii.gz").stat().st_mtime_ns
    truncate("preds/test_1.nii.gz", share)(masks)
    assert masks.run(CONTINUED) == 0
    assert np.array_equal(read(masks.root / "preds" / "test_1.nii.gz"), expected)
    assert (masks.root / "preds" / "test_0.nii.gz").stat().st_mtime_ns == kept
    truncate("preds/test_1.nii.gz", share)(masks)
    assert masks.run(PREDICT) == 0  # what is damaged needs no --overwrite


def test_a_changed_image_is_predicted_again_and_a_copied_mask_kept(masks):
    change_image("raw/*/imagesTs/test_1_0000.nii.gz", voxels=lambda array: 2 * array)(masks)
    before = {file.name: file.stat().st_mtime_ns for file in (masks.root / "preds").glob("*.nii.gz")}
    assert masks.run(CONTINUED) == 0
    after = {file.name: file.stat().st_mtime_ns for file in (masks.root / "preds").glob("*.nii.gz")}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["test_1.nii.gz"]
    shutil.copytree(masks.root / "preds", masks.root / "copied", copy_function=shutil.copy)  # with new times
    assert masks.run(CONTINUED.replace("-o preds", "-o copied")) == 0
    assert masks.run(PREDICT.replace("-o preds", "-o copied")) == 0


KILLED = """
import os, sys
from samunet.imageio.simpleitk import SimpleITKReader
write = SimpleITKReader.write_label
def killed(self, *arguments):
    if "{when}" == "after":
        write(self, *arguments)
    os._exit(9)
SimpleITKReader.write_label = killed
from samunet.commands import run_command
run_command("samunet_predict", sys.argv[1:])
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_a_mask_blocks_nothing(project, when):
    """Its probabilities are there, and after the mask was written that as well, but its record is not completed."""
    arguments = [*PREDICT.split()[1:], "--save_probabilities"]
    script = KILLED.replace("{when}", when)
    assert subprocess.run([sys.executable, "-c", script, *arguments]).returncode == 9
    there = [path.name for path in sorted((project.root / "preds").glob("test*"))]
    assert there == (["test_0.nii.gz", "test_0.npz"] if when == "after" else ["test_0.npz"])
    assert project.run(CONTINUED) == 0
    assert len(list((project.root / "preds").glob("*.nii.gz"))) == 2


def test_one_bad_image_stops_no_prediction(project, capsys):
    source = project.root / RAW / "imagesTs"
    for name in ("a", "b", "c"):
        shutil.copy2(source / "test_0_0000.nii.gz", source / f"{name}_0000.nii.gz")
    truncate("raw/*/imagesTs/a_0000.nii.gz")(project)
    change_image("raw/*/imagesTs/b_0000.nii.gz", voxels=voxel(float("nan")))(project)
    (source / "c_0000.nii.gz").write_bytes(b"")
    for command in (PREDICT, CONTINUED):
        assert project.run(command) == 1
        printed = capsys.readouterr().err
        listed = printed[printed.index("error: ") :]
        assert listed.startswith("error: 3 of 5 cases failed, the others are done:\n")
        for part in ("case a: ", "truncated", "case b: ", "NaN", "case c: ", "is empty", "--continue_prediction"):
            assert part in listed
        assert "Traceback" not in printed
        assert sorted(file.name for file in (project.root / "preds").glob("*.nii.gz")) == [
            "test_0.nii.gz", "test_1.nii.gz",
        ]  # fmt: skip
    assert "2 were there already" in printed
    with pytest.raises(CasesFailed) as caught:
        api.predict(source, project.root / "others", dataset=998, progress=False)
    assert sorted(caught.value.failures) == ["a", "b", "c"]
    assert len(list((project.root / "others").glob("*.nii.gz"))) == 2
    for name in ("a", "b", "c"):
        (source / f"{name}_0000.nii.gz").unlink()
    assert project.run(CONTINUED) == 0


def test_every_part_tells_its_own_failures(project, capsys):
    truncate("raw/*/imagesTs/test_1_0000.nii.gz")(project)
    assert project.run(PREDICT + " -num_parts 2 -part_id 0") == 0
    assert project.run(PREDICT + " -num_parts 2 -part_id 1") == 1
    assert "case test_1: " in capsys.readouterr().err


def test_a_full_disk_stops_at_once(project, monkeypatch):
    from samunet.errors import FatalError
    from samunet.inference.predictor import Predictor

    tried = []

    def fail(self, case, file):
        tried.append(case.name)
        raise FatalError(f"case {case.name}: could not write {file}: No space left on device")

    monkeypatch.setattr(Predictor, "predict_case", fail)
    with pytest.raises(SamunetError, match="No space left"):
        api.predict(project.root / RAW / "imagesTs", project.root / "preds", dataset=998, progress=False)
    assert tried == ["test_0"]


def test_one_bad_case_stops_no_preprocessing(project, capsys):
    for name in ("case_1", "case_3"):
        truncate(f"raw/*/imagesTr/{name}_0000.nii.gz")(project)
    stored = project.root / "preprocessed" / "Dataset998_Tiny" / "samunetPlans_2d"
    shutil.rmtree(stored)
    for flags in ("", " -np 2"):
        assert project.run(STORE + flags) == 1
        printed = capsys.readouterr().err
        assert "case case_1: " in printed
        assert "case case_3: " in printed
    assert sorted(file.name for file in stored.glob("case_?.json")) == [f"case_{i}.json" for i in (0, 2, 4, 5)]


def test_one_bad_mask_stops_no_score_ensemble_or_postprocessing(project, capsys):
    assert project.run(PREDICT + " --save_probabilities") == 0
    shutil.copytree(project.root / "preds", project.root / "others")
    truncate("others/test_0.npz")(project)
    assert project.run("ensemble -i preds others -o both") == 1
    assert "case test_0: " in capsys.readouterr().err
    assert np.array_equal(read(project.root / "both" / "test_1.nii.gz"), read(project.root / "preds" / "test_1.nii.gz"))
    truncate("preds/test_0.nii.gz")(project)
    Postprocessing().write(project.root / "pp.json")
    assert project.run("apply_postprocessing -i preds -pp_json pp.json -o processed") == 1
    assert "case test_0: " in capsys.readouterr().err
    assert [file.name for file in (project.root / "processed").glob("*.nii.gz")] == ["test_1.nii.gz"]
    assert project.run(SCORE) == 1
    printed = capsys.readouterr()
    assert "case test_0: " in printed.err
    assert "mean" in printed.out
    summary = json.loads((project.root / "preds" / "summary.json").read_text())
    assert [Path(entry["prediction_file"]).name for entry in summary["metric_per_case"]] == ["test_1.nii.gz"]
    assert list(summary["failed_cases"]) == ["test_0"]


@pytest.mark.parametrize("inside", ["Dataset027_A", "samunetTrainer__samunetPlans__2d"])
def test_the_working_folders_themselves_are_no_place_for_masks(tmp_path, inside):
    (tmp_path / inside).mkdir()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="which results would be mixed with"):
            outputs.check_folder(tmp_path, overwrite=overwrite)
