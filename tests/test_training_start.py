"""What a training does before its first step and after its last; the steps themselves are left out."""

import gc
import json
import re
import shutil
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from samunet import api
from samunet.commands import run_command
from samunet.errors import SamunetError, UsageError
from samunet.training import run, trainer
from samunet.training.trainer import Trainer


@pytest.fixture
def planned(samunet_folders, tiny_dataset, monkeypatch):
    """A tiny dataset, planned and preprocessed; nothing is trained and nothing validated."""
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    monkeypatch.setattr(Trainer, "train", lambda self: None)
    monkeypatch.setattr(run, "_validate", lambda *arguments: None)
    return samunet_folders


def train(fold=0, configuration="2d"):
    return api.train(998, configuration, fold, api.TrainingOptions(iterations=4, batch_size=2), progress=False)


def test_the_network_is_freed_before_the_validation(planned, monkeypatch):
    trained, there = [], []
    monkeypatch.setattr(Trainer, "train", lambda self: trained.append(weakref.ref(self.model)))

    def validate(*arguments):
        gc.collect()
        there.append(trained[0]() is not None)

    monkeypatch.setattr(run, "_validate", validate)
    train()
    assert there == [False]


def test_a_validation_case_that_is_missing_is_told_before_anything_is_written(planned, monkeypatch):
    monkeypatch.setattr(run, "load_dataset", lambda name: SimpleNamespace(folder=name, cases={"case_9": None}))
    with pytest.raises(SamunetError, match=r"Dataset998_Tiny lacks 2 of the fold's 2 .* such as case_") as caught:
        train()
    assert "samunet_raw" in caught.value.hint
    assert not list(planned.glob("results/*/*/fold_0"))


def test_fold_all_needs_no_raw_images(planned, monkeypatch):
    monkeypatch.delenv("samunet_raw")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(SamunetError, match="samunet_raw is not set"):
        train()
    train("all")


def test_a_resumed_training_in_half_precision_keeps_the_scale_of_its_gradients(planned, monkeypatch):
    monkeypatch.setattr(trainer, "fast_dtype", lambda device, input_shape: torch.float16)
    scales = []

    def begin(self):
        scales.append(self.scaler.get_scale())
        self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": 1024.0})
        self._save_latest()

    monkeypatch.setattr(Trainer, "train", begin)
    train()
    train()
    assert scales == [65536.0, 1024.0]


def test_without_half_precision_there_is_no_scale_to_keep(planned, monkeypatch):
    monkeypatch.setattr(trainer, "fast_dtype", lambda device, input_shape: None)
    monkeypatch.setattr(Trainer, "train", Trainer._save_latest)
    train()
    kept = []
    monkeypatch.setattr(Trainer, "train", lambda self: kept.append((self.state.scaler, self.scaler.is_enabled())))
    train()
    assert kept == [({}, False)]


def test_every_fold_counts_its_own_peak_memory(planned, monkeypatch):
    calls = []
    monkeypatch.setattr(trainer, "reset_peak_memory", calls.append)
    train(0)
    train(1)
    assert len(calls) == 2


def test_a_configuration_of_sam_s_input_is_for_sam_only(planned):
    with pytest.raises(UsageError, match="hold networks for vit_b, not for small"):
        api.train(998, "2d_448", 0, api.TrainingOptions(iterations=4, encoder="small"), progress=False)


def edit_label(raw):
    path = raw / "labelsTr" / "case_1.nii.gz"
    image = sitk.ReadImage(str(path))
    moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), 2, axis=1))
    moved.CopyInformation(image)
    sitk.WriteImage(moved, str(path))


def add_files_alone(raw, name="case_7"):
    """A case whose number dataset.json does not tell."""
    for part, number in (("imagesTr", "_0000"), ("labelsTr", "")):
        shutil.copyfile(raw / part / f"case_1{number}.nii.gz", raw / part / f"{name}{number}.nii.gz")


def add_case(raw, name="case_7"):
    add_files_alone(raw, name)
    set_number(raw)


def remove_case(raw):
    (raw / "imagesTr" / "case_1_0000.nii.gz").unlink()
    (raw / "labelsTr" / "case_1.nii.gz").unlink()
    set_number(raw)


def set_number(raw):
    content = json.loads((raw / "dataset.json").read_text())
    content["numTraining"] = len(list((raw / "labelsTr").iterdir()))
    (raw / "dataset.json").write_text(json.dumps(content))


def given_splits(raw):
    (raw / "splits_final.json").write_text('[{"train": ["case_0"], "val": ["case_1"]}]')


def divided_patient(raw):
    content = json.loads((raw / "dataset.json").read_text())
    content["groups"] = {f"case_{index}": "p" if index < 4 else str(index) for index in range(6)}
    (raw / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            edit_label,
            r"(?s)changed after preprocessing: labelsTr/case_1\.nii\.gz.*samunet_add_cases -d 998",
        ),
        (add_case, r"(?s)1 training case was added \(case_7\).*samunet_add_cases -d 998"),
        (
            add_files_alone,
            r'(?s)1 training case was added \(case_7\).*write "numTraining": 7 in .*, then: samunet_add_cases',
        ),
        (remove_case, r"(?s)1 training case was removed \(case_1\).*samunet_add_cases -d 998"),
        (given_splits, r"(?s)splits_final\.json differ: which of them holds"),
        (divided_patient, r"(?s)both trains on and validates 1 patient, such as p .*by groups"),
    ],
)
def test_a_change_after_preprocessing_stops_the_training(planned, samunet_folders, capsys, change, said):
    raw = samunet_folders / "raw" / "Dataset998_Tiny"
    change(raw)
    assert run_command("samunet_train", ["998", "2d", "0", "--iterations", "1"]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not list((samunet_folders / "results").rglob("run.json"))


def test_a_training_without_the_raw_dataset_compares_nothing(planned, samunet_folders):
    shutil.rmtree(samunet_folders / "raw" / "Dataset998_Tiny")
    train("all")


def test_a_fold_that_began_with_other_labels_does_not_go_on(planned, samunet_folders, monkeypatch, capsys):
    def begin(self):
        (self.folder / "run.json").write_text(json.dumps(self.run))

    monkeypatch.setattr(Trainer, "train", begin)
    train()
    edit_label(samunet_folders / "raw" / "Dataset998_Tiny")
    api.preprocess(998, progress=False)
    with pytest.raises(SamunetError, match=r"(?s)fold_0 began with other images or labels.*train it anew with"):
        train()


def test_added_cases_join_the_folds_and_removed_ones_leave(planned, samunet_folders, capsys):
    raw = samunet_folders / "raw" / "Dataset998_Tiny"
    folder = samunet_folders / "preprocessed" / "Dataset998_Tiny"
    plans, before = (folder / "samunetPlans.json").read_text(), json.loads((folder / "splits_final.json").read_text())
    add_case(raw)
    remove_case(raw)
    assert run_command("samunet_add_cases", ["-d", "998"]) == 0
    after = json.loads((folder / "splits_final.json").read_text())
    home = next(fold for fold, split in enumerate(after) if "case_7" in split["val"])
    assert f"case_7: validated by fold {home}" in capsys.readouterr().out
    for fold, (old, new) in enumerate(zip(before, after)):
        assert set(new["val"]) == set(old["val"]) - {"case_1"} | ({"case_7"} if fold == home else set())
        assert sorted(new["train"] + new["val"]) == ["case_0", "case_2", "case_3", "case_4", "case_5", "case_7"]
    assert (folder / "samunetPlans.json").read_text() == plans
    assert (folder / "samunetPlans_2d" / "labels" / "case_7.b2nd").is_file()
