"""Preprocessing a dataset does only what is not done yet."""

import os

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.dataset.cases import Case
from samunet.dataset.description import read_description
from samunet.dataset.layout import load_dataset, read_dataset
from samunet.errors import SamunetError
from samunet.paths import number_in
from samunet.plans import ConfigurationPlan, IntensityStatistics, Plans
from samunet.preprocessing.run import changed_files, check_channels, file_facts, store_cases, stored_cases

NAME = "Dataset998_Tiny"
CASES = ("a", "b", "c")
STATISTICS = IntensityStatistics(
    mean=250.0, median=250.0, std=50.0, min=100.0, max=500.0, percentile_00_5=120.0, percentile_99_5=450.0
)
CONFIGURATION = ConfigurationPlan.model_construct(
    data_identifier="samunetPlans_2d", spacing=[1.0, 1.0], median_shape=[4, 24, 20], normalization=["zscore"],
    use_mask_for_norm=[False], mirror_axes=[0, 1], foreground_share=0.33, networks={},
)  # fmt: skip
PLANS = Plans(
    dataset_name=NAME, plans_name="samunetPlans", samunet_version="0", image_reader="SimpleITKIO",
    physical_spacing=True, original_median_spacing=[3.0, 1.0, 1.0], original_median_shape=[4, 24, 20],
    transpose_forward=[0, 1, 2], foreground_intensity_properties_per_channel={"0": STATISTICS},
    gpu_memory_target_gb=8.0, encoder="auto", configurations={},
)  # fmt: skip


@pytest.fixture
def raw(samunet_folders, tiny_dataset):
    return tiny_dataset(NAME, ids=CASES)


@pytest.fixture
def folder(samunet_folders):
    return samunet_folders / "preprocessed" / NAME


def preprocess(folder, configuration=CONFIGURATION, plans=PLANS):
    dataset, target = load_dataset(NAME), folder / configuration.data_identifier
    check_channels(configuration, dataset.description, dataset.folder / "dataset.json")
    return store_cases(dataset.cases, dataset.description, plans, configuration, target, progress=False)


def opened(folder, configuration, names):
    raw = load_dataset(NAME)
    return stored_cases(folder, PLANS, configuration, raw.description, names, raw)


def written(folder):
    """When each case was finished."""
    return {name: (folder / "samunetPlans_2d" / f"{name}.json").stat().st_mtime_ns for name in CASES}


def test_every_case_is_stored(raw, folder):
    assert preprocess(folder) == 3
    target = folder / "samunetPlans_2d"
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {
        file for name in CASES for file in (f"{name}.b2nd", f"labels/{name}.b2nd", f"labels/{name}.npz", f"{name}.json")
    }
    for name, case in opened(folder, CONFIGURATION, list(CASES)).items():
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / f"{name}_0000.nii.gz")))
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / f"{name}.nii.gz")))
        assert np.array_equal(case.label(), label)
        assert np.allclose(case.image()[0], (image - image.mean()) / image.std(), atol=3e-3)


def test_a_second_run_stores_nothing(raw, folder):
    preprocess(folder)
    before = written(folder)
    assert preprocess(folder) == 0
    assert written(folder) == before


@pytest.mark.parametrize("file", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"])
def test_a_changed_file_is_preprocessed_again(raw, folder, file):
    preprocess(folder)
    before = written(folder)
    image = sitk.ReadImage(str(raw / file))
    moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), 1, axis=2))
    moved.CopyInformation(image)
    sitk.WriteImage(moved, str(raw / file))
    os.utime(raw / file, ns=(1, 1))
    assert preprocess(folder) == 1
    after = written(folder)
    assert [name for name in CASES if after[name] != before[name]] == ["b"]
    assert preprocess(folder) == 0


@pytest.mark.parametrize(
    ("of_configuration", "of_plans"),
    [
        ({"normalization": ["nonorm"]}, {}),
        ({"spacing": [2.0, 2.0]}, {}),
        ({"use_mask_for_norm": [True]}, {}),
        ({}, {"transpose_forward": [1, 0, 2]}),
    ],
)
def test_changed_plans_make_every_case_anew(raw, folder, of_configuration, of_plans):
    preprocess(folder)
    changed = CONFIGURATION.changed(**of_configuration), PLANS.changed(**of_plans)
    assert preprocess(folder, *changed) == 3
    assert preprocess(folder, *changed) == 0


def test_the_ignore_label_is_part_of_what_is_stored(raw, folder):
    preprocess(folder)
    description = raw / "dataset.json"
    description.write_text(description.read_text().replace('"core": 2', '"core": 2, "ignore": 3'))
    with pytest.raises(SamunetError, match="not preprocessed with these plans"):
        opened(folder, CONFIGURATION, list(CASES))
    assert preprocess(folder) == 3


def test_decisions_about_training_alone_change_nothing(raw, folder):
    preprocess(folder)
    assert preprocess(folder, CONFIGURATION.changed(mirror_axes=[], foreground_share=0.5)) == 0
    assert preprocess(folder, plans=PLANS.changed(encoder="vit_b", why={"a": "b"})) == 0


@pytest.mark.parametrize("scheme", ["ct", "ct_to_0_1"])
def test_both_ct_schemes_depend_on_the_datasets_statistics(raw, folder, scheme):
    configuration = CONFIGURATION.changed(normalization=[scheme])
    assert preprocess(folder, configuration) == 3
    other = PLANS.changed(foreground_intensity_properties_per_channel={"0": STATISTICS.changed(percentile_99_5=451.0)})
    assert preprocess(folder, configuration, other) == 3
    assert preprocess(folder, configuration, other) == 0


def test_only_ct_depends_on_the_datasets_statistics(raw, folder):
    others = PLANS.changed(foreground_intensity_properties_per_channel={"0": STATISTICS.changed(mean=251.0)})
    ct = CONFIGURATION.changed(normalization=["ct"])
    preprocess(folder)
    assert preprocess(folder, plans=others) == 0
    assert preprocess(folder, ct) == 3
    assert preprocess(folder, ct, others) == 3


def test_a_new_case_leaves_the_others(raw, folder, tiny_dataset):
    preprocess(folder)
    before = written(folder)
    for part, name in (("imagesTr", "{}_0000.nii.gz"), ("labelsTr", "{}.nii.gz")):
        (raw / part / name.format("d")).write_bytes((raw / part / name.format("a")).read_bytes())
    description = raw / "dataset.json"
    description.write_text(description.read_text().replace('"numTraining": 3', '"numTraining": 4'))
    assert preprocess(folder) == 1
    assert written(folder) == before


def test_a_failing_case_is_named_and_the_others_are_done(raw, folder):
    file = raw / "imagesTr" / "b_0000.nii.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SamunetError, match=r"case b: .*b_0000\.nii\.gz is damaged or truncated"):
        preprocess(folder)
    assert set(opened(folder, CONFIGURATION, ["a", "c"])) == {"a", "c"}
    before = (folder / "samunetPlans_2d" / "a.json").stat().st_mtime_ns
    file.write_bytes(content)
    assert preprocess(folder) == 1
    assert (folder / "samunetPlans_2d" / "a.json").stat().st_mtime_ns == before


def test_an_unfinished_case_is_made_again(raw, folder):
    preprocess(folder)
    (folder / "samunetPlans_2d" / "c.json").unlink()
    with pytest.raises(SamunetError, match=r"1 of 3 cases are not preprocessed .*for example c") as caught:
        opened(folder, CONFIGURATION, list(CASES))
    assert caught.value.hint == f"`api.preprocess('{NAME}', ['2d'], '{PLANS.plans_name}')`"
    assert preprocess(folder) == 1
    assert set(opened(folder, CONFIGURATION, list(CASES))) == set(CASES)


def test_slices_of_other_plans_are_not_opened(raw, folder):
    preprocess(folder)
    with pytest.raises(SamunetError, match="preprocessed"):
        opened(folder, CONFIGURATION.changed(normalization=["nonorm"]), list(CASES))


def copied(raw):
    """Other times, the same content: a copy on another machine."""
    for file in [*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]:
        os.utime(file, ns=(5, 5))


def test_a_copy_with_other_times_is_the_same(raw, folder, monkeypatch):
    preprocess(folder)
    copied(raw)
    assert preprocess(folder) == 0
    assert set(opened(folder, CONFIGURATION, list(CASES))) == set(CASES)
    monkeypatch.setattr("samunet.preprocessing.run.file_hash", None)
    assert set(opened(folder, CONFIGURATION, list(CASES))) == set(CASES)  # the times are known now: nothing is read


@pytest.mark.parametrize("file", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"])
@pytest.mark.parametrize("longer", [False, True])
def test_stored_cases_of_files_that_changed_are_not_opened(raw, folder, file, longer):
    preprocess(folder)
    content = bytearray((raw / file).read_bytes())
    content = content + b"." if longer else content[:-1] + bytes([content[-1] ^ 1])
    (raw / file).write_bytes(content)
    with pytest.raises(SamunetError, match=f"the files of 1 cases changed after preprocessing: {file}") as caught:
        opened(folder, CONFIGURATION, list(CASES))
    assert caught.value.hint == f"`api.add_cases('{number_in(NAME)}')` stores and measures them again"
    assert set(opened(folder, CONFIGURATION, ["a", "c"])) == {"a", "c"}
    description = load_dataset(NAME).description
    assert set(stored_cases(folder, PLANS, CONFIGURATION, description, list(CASES), None)) == set(CASES)


def test_changed_labels_do_not_matter_to_who_reads_images_alone(raw, folder):
    preprocess(folder)
    (raw / "labelsTr" / "b.nii.gz").write_bytes(b"?")
    (raw / "labelsTr" / "a.nii.gz").unlink()
    description, now = read_description(raw), read_dataset(NAME)
    arguments = (folder, PLANS, CONFIGURATION, description, list(CASES), now)
    assert set(stored_cases(*arguments, images_only=True)) == set(CASES)
    with pytest.raises(SamunetError, match="the files of 2 cases changed"):
        stored_cases(*arguments)
    (raw / "imagesTr" / "c_0000.nii.gz").write_bytes(b"?")
    with pytest.raises(SamunetError, match=r"the files of 1 cases changed .*: imagesTr/c_0000\.nii\.gz"):
        stored_cases(*arguments, images_only=True)


def test_what_is_read_with_a_file_belongs_to_it(tmp_path):
    case = Case("a", (tmp_path / "a_0000.tif",), tmp_path / "a.tif")
    for name in ("a_0000.tif", "a.tif", "a_0000.json"):
        (tmp_path / name).write_text(name)
    facts = file_facts(case)
    assert [fact["name"] for fact in facts] == ["a_0000.tif", "a_0000.json", "a.tif"]
    assert changed_files(case, facts) == []
    (tmp_path / "a_0000.json").write_text("other")
    assert changed_files(case, facts) == [f"{tmp_path.name}/a_0000.json"]
    (tmp_path / "a_0000.json").unlink()
    assert changed_files(case, facts)


def test_slices_of_the_first_version_are_made_again_and_removed(raw, folder):
    preprocess(folder)
    target = folder / "samunetPlans_2d"
    for name in CASES:  # as 0.1.0 laid them out
        (target / "labels" / f"{name}.b2nd").rename(target / f"{name}_seg.b2nd")
        (target / "labels" / f"{name}.npz").rename(target / f"{name}_locations.npz")
        (target / f"{name}.json").write_text('{"key": {"plans": "x", "files": "y"}, "record": {}}')
    with pytest.raises(SamunetError, match="stored by an earlier version of samunet") as caught:
        opened(folder, CONFIGURATION, list(CASES))
    assert caught.value.hint == f"`api.preprocess('{NAME}', ['2d'], 'samunetPlans')`"
    assert preprocess(folder) == 3
    assert not [*target.glob("*_seg.b2nd"), *target.glob("*_locations.npz")]
    assert set(opened(folder, CONFIGURATION, list(CASES))) == set(CASES)
