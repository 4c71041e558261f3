"""Largest components: applied, chosen, stored; with classes, regions and an ignore label, in volumes and pictures."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.commands import run_command
from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.inference.postprocessing import (
    Postprocessing,
    Step,
    class_step,
    foreground_step,
    read_postprocessing,
)

CLASSES = Labels.from_json({"background": 0, "organ": 1, "core": 2})
REGIONS = Labels.from_json(
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, regions_class_order=[1, 2, 3]
)


def volume(*boxes):
    """A map ``(2, 12, 12)`` with ``(value, rows, columns)`` painted in both slices."""
    label = np.zeros((2, 12, 12), np.uint8)
    for value, (top, bottom), (left, right) in boxes:
        label[:, top:bottom, left:right] = value
    return label


def test_foreground_keeps_the_largest_of_all_classes_together():
    mask = volume((1, (0, 4), (0, 4)), (2, (4, 6), (0, 4)), (2, (8, 12), (8, 12)))
    expected = volume((1, (0, 4), (0, 4)), (2, (4, 6), (0, 4)))
    assert np.array_equal(foreground_step(CLASSES).apply(mask), expected)
    assert np.array_equal(class_step(CLASSES, 1).apply(mask), volume((1, (0, 4), (0, 4)), (2, (8, 12), (8, 12))))


def test_nothing_to_remove_gives_the_same_array():
    for mask in (volume(), volume((1, (0, 3), (0, 3))), volume((1, (0, 3), (0, 3)), (1, (3, 5), (3, 5)))):
        assert foreground_step(CLASSES).apply(mask) is mask  # the last two touch by an edge


def test_equally_large_components_are_all_kept():
    mask = volume((1, (0, 3), (0, 3)), (1, (6, 9), (6, 9)))
    assert foreground_step(CLASSES).apply(mask) is mask


def test_a_regions_small_part_becomes_what_lies_around_it():
    mask = volume(
        (1, (0, 10), (0, 10)), (2, (1, 5), (1, 5)), (3, (2, 4), (2, 4)), (2, (6, 8), (6, 9)), (3, (7, 8), (6, 7))
    )
    core = class_step(REGIONS, 1).apply(mask)
    assert np.array_equal(core, volume((1, (0, 10), (0, 10)), (2, (1, 5), (1, 5)), (3, (2, 4), (2, 4))))
    enhancing = class_step(REGIONS, 2).apply(mask)
    expected = mask.copy()
    expected[:, 7, 6] = 2
    assert np.array_equal(enhancing, expected)
    assert class_step(REGIONS, 0).becomes == (0, 0, 0)


def test_steps_survive_a_file(tmp_path):
    steps = Postprocessing((foreground_step(REGIONS), class_step(REGIONS, 1)))
    steps.write(tmp_path / "postprocessing.json", ["why"])
    assert read_postprocessing(tmp_path / "postprocessing.json") == steps
    Postprocessing().write(tmp_path / "none.json")
    assert read_postprocessing(tmp_path / "none.json") == Postprocessing()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "should be an object"),
        ('{"steps": [{"rule": "erode"}]}', "steps.0"),
        ('{"steps": [{"rule": "keep_largest_component", "values": [1.5], "removed_voxels_become": [0]}]}', "values"),
        ('{"steps": [{"rule": "keep_largest_component", "values": [1], "removed_voxels_become": []}]}', "same length"),
        (
            '{"steps": [{"rule": "keep_largest_component", "values": [-1], "removed_voxels_become": [0]}]}',
            "greater than or equal to 0",
        ),
        ("{", "not valid JSON"),
    ],
)
def test_damaged_files_are_explained(tmp_path, content, expected):
    (tmp_path / "postprocessing.json").write_text(content)
    with pytest.raises(SamunetError, match=expected) as error:
        read_postprocessing(tmp_path / "postprocessing.json")
    assert "api.determine_postprocessing" in error.value.hint


def write_folder(folder, masks, description=None):
    folder.mkdir()
    for name, mask in masks.items():
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / f"{name}.nii.gz"))
    if description:
        content = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz", "numTraining": len(masks)} | description
        (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def determine(tmp_path, masks, references, description):
    predictions = write_folder(tmp_path / "predictions", masks, description)
    labels = write_folder(tmp_path / "labels", references)
    assert (
        run_command("samunet_determine_postprocessing", ["-i", str(predictions), "-ref", str(labels), "-np", "0"]) == 0
    )
    return predictions, json.loads((predictions / "postprocessing.json").read_text())


def test_steps_that_help_are_chosen(tmp_path, capsys):
    # The organ has a speck that belongs to nothing. The core truly has two parts, far from each other.
    reference = volume((1, (0, 6), (0, 6)), (2, (1, 3), (1, 3)), (2, (4, 5), (4, 5)))
    speck = volume((1, (0, 6), (0, 6)), (2, (1, 3), (1, 3)), (2, (4, 5), (4, 5)), (1, (10, 11), (10, 11)))
    labels = {"labels": {"background": 0, "organ": 1, "core": 2}}
    predictions, content = determine(tmp_path, {"a": speck, "b": reference}, {"a": reference, "b": reference}, labels)
    assert [step["of"] for step in content["steps"]] == ["foreground"]
    assert [entry["chosen"] for entry in content["decisions"]] == [True, False, False]
    assert "only the largest component of foreground" in capsys.readouterr().out
    summary = json.loads((predictions / "postprocessed" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == 1
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(predictions / "postprocessed" / "a.nii.gz")))
    assert np.array_equal(mask, reference)
    assert summary["metric_per_case"][0]["prediction_file"] == str(predictions / "postprocessed" / "a.nii.gz")


def test_a_step_that_lowers_another_class_is_not_kept(tmp_path):
    # All foreground together: the organ gains more than the core, which lies apart, loses.
    reference = volume((1, (0, 6), (0, 6)), (2, (10, 12), (10, 12)))
    speck = volume((1, (0, 6), (0, 6)), (2, (10, 12), (10, 12)), (1, (8, 9), (0, 9)))
    labels = {"labels": {"background": 0, "organ": 1, "core": 2}}
    _, content = determine(tmp_path, {"a": speck}, {"a": reference}, labels)
    assert [step["of"] for step in content["steps"]] == ["organ"]
    assert "lowers core" in content["decisions"][0]["why"]


def test_several_classes_are_chosen_in_one_pass(tmp_path):
    reference = volume((1, (0, 5), (0, 5)), (2, (8, 12), (8, 12)))
    specks = volume((1, (0, 5), (0, 5)), (2, (8, 12), (8, 12)), (2, (0, 1), (10, 12)), (1, (11, 12), (0, 2)))
    predictions, content = determine(
        tmp_path, {"a": specks}, {"a": reference}, {"labels": {"background": 0, "organ": 1, "core": 2}}
    )
    assert [step["of"] for step in content["steps"]] == ["organ", "core"]
    assert json.loads((predictions / "postprocessed" / "summary.json").read_text())["foreground_mean"]["Dice"] == 1


def test_regions_and_an_ignore_label(tmp_path):
    reference = volume((1, (0, 10), (0, 10)), (2, (1, 5), (1, 5)), (3, (2, 4), (2, 4)), (4, (11, 12), (0, 12)))
    predicted = volume(
        (1, (0, 10), (0, 10)), (2, (1, 5), (1, 5)), (3, (2, 4), (2, 4)), (2, (7, 9), (6, 9)), (3, (8, 9), (6, 7))
    )
    predicted[:, 11, 0:5] = 1  # where nobody annotated
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    predictions, content = determine(
        tmp_path, {"a": predicted}, {"a": reference}, {"labels": labels, "regions_class_order": [1, 2, 3]}
    )
    assert [step["of"] for step in content["steps"]] == ["core"]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(predictions / "postprocessed" / "a.nii.gz")))
    assert mask[0, 8, 7] == 1
    assert mask[0, 11, 2] == 1
    summary = json.loads((predictions / "postprocessed" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == 1


def test_pictures_and_many_classes(tmp_path):
    source, output = tmp_path / "masks", tmp_path / "out"
    source.mkdir()
    label = volume((200, (0, 4), (0, 4)), (200, (9, 10), (9, 10)))[0]
    Image.fromarray(label).save(source / "a.png")
    Postprocessing((Step("last", (200,), (0,)),)).write(tmp_path / "steps.json")
    flags = ["-i", str(source), "-o", str(output), "-pp_json", str(tmp_path / "steps.json")]
    assert run_command("samunet_apply_postprocessing", flags) == 0
    assert np.array_equal(np.asarray(Image.open(output / "a.png")), volume((200, (0, 4), (0, 4)))[0])
    large = np.zeros((2, 12, 12), np.uint16)
    large[:, :4, :4], large[:, 9:, 9:] = 300, 300
    kept = Step("300", (300,), (0,)).apply(large)
    assert kept[0, 0, 0] == 300
    assert kept[0, 11, 11] == 0


def test_wrong_usage_is_explained(tmp_path, capsys):
    folder = write_folder(tmp_path / "masks", {"a": volume()})
    steps = tmp_path / "steps.json"
    Postprocessing().write(steps)
    for flags, expected in (
        (["-i", str(folder), "-o", str(folder), "-pp_json", str(steps)], "also an input"),
        (["-i", str(folder), "-o", str(tmp_path / "out")], "postprocessing.json does not exist"),
        (["-i", str(tmp_path / "none"), "-o", str(tmp_path / "out"), "-pp_json", str(steps)], "is not a folder"),
    ):
        assert run_command("samunet_apply_postprocessing", flags) == 2
        assert expected in capsys.readouterr().err
    labels = write_folder(tmp_path / "labels", {"b": volume()})
    assert run_command("samunet_determine_postprocessing", ["-i", str(folder), "-ref", str(labels)]) == 1
    assert "-dataset_json" in capsys.readouterr().err
    write_folder(tmp_path / "described", {"a": volume()}, {"labels": {"background": 0, "organ": 1}})
    assert (
        run_command("samunet_determine_postprocessing", ["-i", str(tmp_path / "described"), "-ref", str(labels)]) == 1
    )
    assert "has no label for 1 of 1 masks, such as a" in capsys.readouterr().err
