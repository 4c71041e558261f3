"""What bad input does, row by row: training, the model's files, prediction, evaluation."""

import shutil

import pytest
from bad_input import (
    FOLD,
    MODEL,
    PLANS,
    PREDICT,
    TRAIN,
    Row,
    both,
    change,
    check,
    copy,
    drop,
    full_disk,
    image,
    locked,
    make_folder,
    make_project,
    nothing,
    plan,
    remove,
    tensors,
    truncate,
    variable,
    voxel,
    write,
)

pytestmark = pytest.mark.full_network

project = pytest.fixture(make_project)

STORED = "preprocessed/*/samunetPlans_2d/"
# What a training writes before its first step.
BEGUN = (MODEL + "*.json", "results/*/*/fold_1/run.json")
BEGAN = (*BEGUN, "results/*/*/fold_1/*")
COPY = "preprocessed/*/dataset.json"
LATEST = "results/*/*/fold_0/checkpoint_latest.safetensors"
AGAIN = TRAIN.replace("2d 1", "2d 0")


def unfinished(project):
    """Fold 0 as a killed training leaves it: with a checkpoint to go on from, and no final model."""
    from samunet.training.trainer import Trainer

    finish = Trainer._finish
    project.patch.setattr(Trainer, "_finish", lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
    project.patch.setattr(Trainer, "_add_point", keep_checkpoint(Trainer._add_point))
    assert project.run(AGAIN + " --overwrite") == 130
    project.patch.setattr(Trainer, "_finish", finish)


def keep_checkpoint(add_point):
    def keeping(trainer, *arguments, **check):
        add_point(trainer, *arguments, **check)
        trainer._save_latest()

    return keeping


def holder(project):
    """Another process that trains fold 1."""
    import subprocess
    import sys

    script = (
        "import sys, pathlib; from samunet.training.lock import training_lock\n"
        "with training_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    folder = project.file(MODEL[:-1]) / "fold_1"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"

    def release():
        process.communicate("")
        assert process.returncode == 0

    return release


def regions(pattern):
    """Damage: a dataset.json whose classes have become regions."""
    return both(
        change(pattern, "labels", {"background": 0, "both": [1, 2], "core": 2}),
        change(pattern, "regions_class_order", [1, 2]),
    )


def not_predicted(project):
    """No damage; but whoever predicts fails, for it takes long."""
    project.patch.setattr("samunet.inference.predictor.Predictor._predict", None)


TRAINING = [
    Row("a fold that does not exist", nothing, "train 998 2d 7", ("no fold 7", "0, 1, 2, 3, 4, all"), 2,
        repaired=False),
    Row("a fold that is text", nothing, "train 998 2d first", ("'first'", "all"), 2, repaired=False),
    Row("a negative fold", nothing, "train 998 2d -1", ("'-1'", "all"), 2, repaired=False),
    Row("an unknown configuration", nothing, "train 998 2d_100 1", ("2d_100", "2d"), 2, repaired=False),
    Row("a 3D configuration", nothing, "train 998 3d_fullres 1", ("3D", "2d"), 2, repaired=False),
    Row("a time budget of words", nothing, TRAIN.split(" --")[0] + " --time_budget soon", ("'soon'", "20m"), 2,
        repaired=False),
    Row("two lengths at once", nothing, TRAIN + " --epochs 3", ("--epochs", "--iterations"), 2, repaired=False),
    Row("no iterations", nothing, TRAIN + " --iterations 0", ("iterations", "0"), 2, repaired=False),
    Row("a negative learning rate", nothing, TRAIN + " --lr -1", ("--lr", "-1"), 2, repaired=False),
    Row("negative workers", nothing, TRAIN + " --num_workers -2", ("--num_workers", "-2"), 2, repaired=False),
    Row("an unknown device", nothing, TRAIN + " -device tpu", ("tpu", "cuda"), 2, repaired=False, writes=BEGUN),
    Row("a device that is not there", nothing, TRAIN + " -device mps", ("mps", "-device cpu"), 2, repaired=False,
        writes=BEGUN),
    Row("an unknown encoder", nothing, TRAIN + " -encoder vit_x", ("vit_x", "vit_b"), 2, repaired=False),
    Row("an encoder that is not planned", nothing, TRAIN + " -encoder vit_h", ("vit_h", "samunet_plan_experiment"), 2,
        repaired=False),
    Row("an encoder without weights", both(remove("results"), variable(samunet_checkpoints="{root}/weights")),
        TRAIN + " -encoder vit_b", ("https://", "{root}/weights/sam_vit_b_01ec64.pth", "-encoder small"),
        repaired=False, writes=BEGUN),
    Row("another encoder than the other fold's", variable(samunet_checkpoints="{root}/weights"),
        TRAIN + " -encoder vit_b", ("fold_0", "small", "-encoder small"), repaired=False),
    Row("never preprocessed", remove("preprocessed/*"), TRAIN, ("samunetPlans", "samunet_plan_and_preprocess -d"),
        repaired=False),
    Row("plans of another name", nothing, TRAIN + " -p otherPlans", ("otherPlans", "samunet_plan_and_preprocess"),
        repaired=False),
    Row("stored slices are gone", remove(STORED[:-1]), TRAIN, ("samunetPlans_2d", "case_", "samunet_preprocess -d"),
        writes=BEGUN),
    Row("a stored case is gone", remove(STORED + "case_1*"), TRAIN, ("1 of", "case_1", "samunet_preprocess -d"),
        writes=BEGUN, repaired=False),
    Row("a stored image is truncated", both(*(truncate(STORED + f"case_{index}.b2nd") for index in range(6))), TRAIN,
        ("case_", ".b2nd", "samunet_p"), writes=BEGAN),
    Row("a stored label is missing", both(*(remove(STORED + f"labels/case_{index}.b2nd") for index in range(6))), TRAIN,
        ("5 of 5", "case_0", "samunet_preprocess -d"), writes=BEGUN, repaired=False),
    Row("stored places are damaged", both(*(write(STORED + f"labels/case_{index}.npz", "?") for index in range(6))),
        TRAIN, ("labels/case_", ".npz", "samunet_p"), writes=BEGAN, repaired=False),
    Row("preprocessed with other plans", plan("spacing", [2.0, 2.0]), TRAIN, ("other plans",), repaired=False),
    Row("the fingerprint is not JSON", write("preprocessed/*/dataset_fingerprint.json", "{"), TRAIN,
        ("dataset_fingerprint.json", "not valid JSON"), repaired=False),
    Row("the fingerprint has no cases", drop("preprocessed/*/dataset_fingerprint.json", "cases"), TRAIN,
        ("dataset_fingerprint.json", "cases"), repaired=False),
    Row("preprocessed dataset.json is gone", remove("preprocessed/*/dataset.json"), TRAIN, ("dataset.json",),
        repaired=False),
    Row("plans with an unknown encoder", plan("networks.small.encoder", "tiny"), TRAIN,
        ("networks.small.encoder", "'tiny'", "samunet_plan_experiment"), repaired=False),
    Row("plans with lora of rank 0", plan("networks.vit_b.adaptation.rank", 0), TRAIN,
        ("networks.vit_b.adaptation.rank", "0"), repaired=False),
    Row("plans with lora where everything trains", plan("networks.vit_b.adaptation.method", "full"), TRAIN,
        ("networks.vit_b.adaptation.rank", "no such key"), repaired=False),
    Row("a finished fold", nothing, AGAIN, ("is finished", "--overwrite", "--val"), repaired=False),
    Row("validation of a fold that was never trained", nothing, TRAIN + " --val", ("no finished training", "--val"), 2,
        repaired=False),
    Row("start from a file that does not exist", nothing, TRAIN + " --pretrained gone.safetensors",
        ("gone.safetensors",), repaired=False),
    Row("start from a file that is no model", write("model.safetensors", "?"),
        TRAIN + " --pretrained model.safetensors", ("model.safetensors", "damaged"), repaired=False),
    Row("start from the fold that is to be overwritten", nothing,
        AGAIN + " --overwrite --pretrained results/Dataset998_Tiny/samunetTrainer__samunetPlans__2d/fold_0/"
        "checkpoint_final.safetensors", ("--overwrite would remove", "checkpoint_final", "copy"), 2, repaired=False),
    Row("stored slices are gone, and the fold is to be overwritten", remove("preprocessed/*/samunetPlans_2d/*"),
        AGAIN + " --overwrite", ("not preprocessed", "samunet_preprocess"), repaired=False),
    Row("run.json of the fold is not JSON", write(FOLD + "run.json", "{"), AGAIN, ("run.json", "not valid JSON"),
        repaired=False),
    Row("run.json of another fold is not JSON", write(FOLD + "run.json", "{"), TRAIN, ("fold_0/run.json",),
        repaired=False),
    Row("checkpoint truncated", both(unfinished, truncate(LATEST)), AGAIN, ("checkpoint_latest", "--overwrite"),
        repaired=False),
    Row("checkpoint without progress", both(unfinished, tensors(LATEST, lambda state: None)), AGAIN,
        ("checkpoint_latest", "--overwrite"), repaired=False),
    Row("checkpoint of another seed", unfinished, AGAIN + " --seed 1", ("fold_0", "seed 12345", "--overwrite"),
        repaired=False, writes=(FOLD + "run.json",)),
    Row("a class was added to dataset.json after planning", change(COPY, "labels",
        {"background": 0, "organ": 1, "core": 2, "cyst": 3}), TRAIN,
        ("preprocessed/Dataset998_Tiny/dataset.json", "labels lists the values 1, 2, 3", "measured with 1, 2",
         "samunet_plan_and_preprocess"), repaired=False),
    Row("a class was taken out of dataset.json after planning", change(COPY, "labels", {"background": 0, "organ": 1}),
        TRAIN, ("labels lists the values 1 ", "measured with 1, 2"), repaired=False),
    Row("a channel was added to dataset.json after planning", change(COPY, "channel_names", {"0": "MRI", "1": "T2"}),
        TRAIN, ("channel_names lists 2 channels (MRI, T2)", "made for 1", "samunet_plan_and_preprocess"),
        repaired=False),
    Row("the raw dataset.json was edited after planning", regions("raw/*/dataset.json"), TRAIN,
        ("labels in", "raw/Dataset998_Tiny/dataset.json", "is not what it was", "samunet_plan_and_preprocess")),
    Row("other labels than the model's other folds", both(regions("raw/*/dataset.json"), regions(COPY)), TRAIN,
        ("labels in", "when the folds in", "-overwrite_plans_name", "--overwrite"), repaired=False),
    Row("SAMed's recipe, regions added after planning", both(plan("networks.small.recipe", "samed"), regions(COPY)),
        TRAIN, ("dataset.json has regions", "recipe 'samed'", "-recipe samed", "samunet_plan_and_preprocess"),
        repaired=False),
    Row("SAMed's recipe, an ignore label added after planning", both(plan("networks.small.recipe", "samed"),
        change(COPY, "labels", {"background": 0, "organ": 1, "core": 2, "ignore": 3})), TRAIN,
        ("dataset.json has an ignore label", "recipe 'samed'"), repaired=False),
    Row("channels changed, then preprocessed", change("raw/*/dataset.json", "channel_names", {"0": "MRI", "1": "T2"}),
        "preprocess -d 998", ("MRI, T2",)),
    Row("plans changed since the other fold", change(PLANS, "configurations.2d.networks.small.learning_rate", 0.1),
        TRAIN, ("other plans", "samunet_plan_experiment -d Dataset", "-overwrite_plans_name NAME", "--overwrite"),
        repaired=False),
    Row("another process trains the fold", holder, TRAIN, ("fold_1", "is being trained by process", "since", "wait"),
        writes=("results/*/*/.fold_1.lock", "results/*/*/.fold_1.holder")),
    Row("disk full at the model's folder", both(remove("results/*"), full_disk(2000)), TRAIN,
        ("plans.json", "free some space")),
    Row("disk full at the checkpoint", full_disk(2_000_000), TRAIN,
        ("checkpoint_best.safetensors", "free some space"), writes=BEGAN),
    Row("results folder is read-only", both(remove("results/*"), locked("results")), TRAIN,
        ("Dataset998_Tiny", "Permission denied", "folder that you may write to")),
    Row("model folder is read-only", locked(MODEL[:-1]), TRAIN,
        (".fold_1.lock", "Permission denied", "samunet_results")),
    Row("no raw images for the final validation", remove("raw/*"), TRAIN, ("Dataset998_Tiny", "set samunet_raw")),
]  # fmt: skip

MASKS = ("preds/*.json", "preds/labels.ctbl", "preds/*.nii.gz", "preds/samunet_record/*.json")


def scan_outside(project):
    """An image beside the raw data."""
    (project.root / "scans").mkdir()
    shutil.copy2(project.file(TEST), project.root / "scans" / "scan.nii.gz")


TEST = "raw/*/imagesTs/test_1_0000.nii.gz"
IMAGES = "raw/Dataset998_Tiny/imagesTs"
MODELS = [
    Row("nothing trained", remove("results/*"), PREDICT, ("nothing is trained yet", "samunet_train"), 2),
    Row("no model of the dataset", make_folder("raw/Dataset005_Liver"), PREDICT.replace("-d 998", "-d 005"),
        ("Dataset005_Liver", "Dataset998_Tiny", "samunet_train"), 2, repaired=False),
    Row("unknown dataset", nothing, PREDICT.replace("-d 998", "-d 5"), ("no dataset 5", "Dataset998_Tiny"), 2,
        repaired=False),
    Row("a fold that is not trained", nothing, PREDICT + " -f 9", ("fold 9", "samunet_train Dataset998_Tiny 2d 9"), 2,
        repaired=False),
    Row("a fold that is text", nothing, PREDICT + " -f first", ("fold first", "-f 0"), 2, repaired=False),
    Row("a fold that is another folder", nothing, PREDICT + " -f ../../x", ("fold ../../x", "-f 0"), 2,
        repaired=False),
    Row("no best checkpoint", remove(FOLD + "checkpoint_best.safetensors"), PREDICT + " -chk best",
        ("best", "samunet_train"), 2),
    Row("an unknown checkpoint", nothing, PREDICT + " -chk last", ("last", "final"), 2, repaired=False),
    Row("model truncated", truncate(FOLD + "checkpoint_final.safetensors"), PREDICT,
        ("checkpoint_final.safetensors", "damaged", "restore")),
    Row("model empty", write(FOLD + "checkpoint_final.safetensors", ""), PREDICT, ("checkpoint_final.safetensors",)),
    Row("tensors of another shape", tensors(FOLD + "checkpoint_final.safetensors", lambda state: state.update(
        {name: value[..., :1].contiguous() for name, value in list(state.items())[:1]})), PREDICT,
        ("does not fit", "plans or classes")),
    Row("tensors missing", tensors(FOLD + "checkpoint_final.safetensors", lambda state: state.popitem()), PREDICT,
        ("does not fit", "plans or classes")),
    Row("dataset.json with another class", change(MODEL + "dataset.json", "labels",
        {"background": 0, "organ": 1, "core": 2, "cyst": 3}), PREDICT, ("does not fit", "classes")),
    Row("dataset.json with another channel", change(MODEL + "dataset.json", "channel_names", {"0": "MRI", "1": "T2"}),
        "merge_adapter 998 2d 0 -o sam.pth", ("dataset.json: channel_names lists 2 channels", "made for 1"),
        repaired=False),
    Row("dataset.json not JSON", write(MODEL + "dataset.json", "{"), PREDICT, ("dataset.json", "not valid JSON")),
    Row("dataset.json is gone", remove(MODEL + "dataset.json"), PREDICT, ("dataset.json",)),
    Row("plans not JSON", write(MODEL + "plans.json", "{"), PREDICT, ("plans.json", "not valid JSON")),
    Row("plans that name another normalisation twice", change(MODEL + "plans.json",
        "configurations.2d.use_mask_for_norm", [True, True]), PREDICT, ("plans.json", "use_mask_for_norm")),
    Row("run.json is gone", remove(FOLD + "run.json"), PREDICT, ("run.json",)),
    Row("run.json not JSON", write(FOLD + "run.json", "{"), PREDICT, ("run.json", "not valid JSON")),
    Row("run.json without encoder", drop(FOLD + "run.json", "encoder"), PREDICT, ("run.json", "encoder")),
    Row("two models fit", copy("results/*/samunetTrainer__*", "samunetTrainer__otherPlans__2d"), PREDICT,
        ("several", "-p otherPlans", "-p samunetPlans"), 2),
]  # fmt: skip

PREDICTION = [
    Row("input folder does not exist", nothing, "predict -d 998 -i nowhere -o preds", ("nowhere",), 2, repaired=False),
    Row("no matching file", both(remove("raw/*/imagesTs/*"), write("raw/Dataset998_Tiny/imagesTs/a.txt", "")), PREDICT,
        ("imagesTs", ".nii.gz")),
    Row("empty folder", remove("raw/*/imagesTs/*"), PREDICT, ("imagesTs", "empty")),
    Row("a surplus channel", copy(TEST, "test_1_0001.nii.gz"), PREDICT, ("test_1", "0001"), writes=MASKS),
    Row("a truncated image", truncate(TEST), PREDICT, ("test_1", "truncated", "again"), writes=MASKS),
    Row("NaN voxels", image(TEST, voxels=voxel(float("nan"))), PREDICT, ("test_1", "NaN"), writes=MASKS),
    Row("a picture for a model of volumes", write("picture.png", b""), "predict -d 998 -i picture.png -o preds",
        ("picture.png",), repaired=False, writes=MASKS),
    Row("output is a file", write("preds", ""), PREDICT, ("preds",)),
    Row("output lies below a file", write("file", ""), PREDICT.replace("-o preds", "-o file/preds"), ("file/preds",)),
    Row("one output file for two cases", nothing, PREDICT.replace("-o preds", "-o mask.nii.gz"),
        ("mask.nii.gz", "2 cases", "-o preds"), 2, repaired=False),
    Row("a mask in the place of its image", scan_outside, "predict -d 998 -i scans/scan.nii.gz -o scans",
        ("scans", "did not write (scan.nii.gz)", "--overwrite"), 2, repaired=False),
    Row("a mask in the place of its image, insisted on", scan_outside,
        "predict -d 998 -i scans/scan.nii.gz -o scans --overwrite", ("scan", "would replace the image", "-o preds"), 2,
        repaired=False),
    Row("a mask that is called like its image", scan_outside,
        "predict -d 998 -i scans/scan.nii.gz -o scans/scan.nii.gz --overwrite", ("would replace the image",), 2,
        repaired=False),
    Row("a picture as the output for a volume", not_predicted,
        f"predict -d 998 -i {IMAGES}/test_0_0000.nii.gz -o mask.png", ("test_0", "mask.png", ".nii.gz"),
        repaired=False),
    Row("a step of 0", nothing, PREDICT + " -step_size 0", ("-step_size", "0"), 2, repaired=False),
    Row("part 3 of 2", nothing, PREDICT + " -num_parts 2 -part_id 3", ("-part_id", "3"), 2, repaired=False),
    Row("no parts", nothing, PREDICT + " -num_parts 0", ("num_parts", "0"), 2, repaired=False),
    Row("an unknown device", nothing, PREDICT + " -device tpu", ("tpu", "cuda"), 2, repaired=False),
    Row("disk full", full_disk(2000), PREDICT, ("preds/plans.json", "free some space"), writes=MASKS),
    # A record fits, an uncompressed mask does not.
    Row("disk full at a mask", full_disk(1000), PREDICT.replace("imagesTs", "imagesTs/test_0_0000.nii.gz")
        .replace("-o preds", "-o mask.nii"), ("mask.nii", "free some space"), writes=("samunet_record/*",)),
    Row("output folder is read-only", both(make_folder("preds"), locked("preds")), PREDICT,
        ("preds", "Permission denied", "folder that you may write to"), repaired=False),
]  # fmt: skip

SCORE = "evaluate_folder raw/Dataset998_Tiny/labelsTs raw/Dataset998_Tiny/labelsTs"
EVALUATION = [
    Row("no such folder", nothing, "evaluate_folder nowhere nowhere", ("nowhere is not a folder",), 2,
        repaired=False),
    Row("a prediction is missing", both(make_folder("preds"), remove("raw/*/labelsTs/test_1.nii.gz")),
        "evaluate_folder raw/Dataset998_Tiny/labelsTs preds", ("preds", "test_0"), repaired=False),
]  # fmt: skip

TABLE = {"training": TRAINING, "model": MODELS, "prediction": PREDICTION, "evaluation": EVALUATION}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{stage}: {row.name}") for stage, rows in TABLE.items() for row in rows]
)
def test_bad_model(row, project, capsys):
    check(row, project, capsys)
