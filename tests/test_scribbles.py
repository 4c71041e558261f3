"""Masks that are annotated in part: strokes in colours, label layers in which 0 is not annotated, segments."""

from pathlib import Path

import numpy as np
import pytest
from test_make_dataset import checked, label, make, photographs, save, volume
from test_segmentations import LIVER, SHAPE, TUMOUR, scan, segmentation

from samunet import api
from samunet.commands import run_command
from samunet.errors import UsageError

# Strokes: of class 1, of class 2, of the background; the rest nobody annotated (3).
STROKES = np.full((12, 10), 3, np.uint8)
STROKES[2, 3:7], STROKES[8, 2:9], STROKES[5, :] = 1, 2, 0


@pytest.fixture(autouse=True)
def work(samunet_folders, monkeypatch):
    (samunet_folders / "work").mkdir()
    monkeypatch.chdir(samunet_folders / "work")
    return samunet_folders / "work"


def coloured(background, wound, ruler, rest):
    colours = np.array([background, wound, ruler, rest], np.uint8)
    return lambda name, path: save(colours[STROKES], path)


BLUE, RED, GREEN, BLACK, GREY = (0, 0, 255), (255, 0, 0), (0, 255, 0), (0, 0, 0), (128, 128, 128)


@pytest.mark.parametrize(
    ("masks", "labels", "rest"),
    [
        (coloured(BLUE, RED, GREEN, BLACK), ["background=blue", "wound=red", "ruler=#00ff00"], "black"),
        (coloured(BLUE, RED, GREEN, BLACK), ["wound=red", "background=blue", "ruler=0,255,0", "ignore"], "#000000"),
        (coloured(BLACK, RED, GREEN, GREY), ["wound=red", "ruler=#00ff00"], "128,128,128"),
    ],
)
def test_strokes_in_colours(masks, labels, rest, caplog, capsys):
    photographs(masks)
    make("photos", "masks", "--not_annotated", rest, "--labels", *labels)
    dataset = checked()
    assert dataset.description.raw["labels"] == {"background": 0, "wound": 1, "ruler": 2, "ignore": 3}
    assert np.array_equal(label(dataset, "a1")[0], STROKES)
    assert "marked as background" not in caplog.text
    assert any(line.endswith("ignore") for line in capsys.readouterr().out.splitlines())


def test_colours_are_numbered_where_one_class_has_no_colour():
    photographs(lambda name, path: save(np.array([BLACK, RED, RED, GREY], np.uint8)[STROKES], path))
    make("photos", "masks", "--not_annotated", "gray", "--labels", "wound")
    assert np.array_equal(label(checked(), "a1")[0], np.array([0, 1, 1, 2])[STROKES])


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ([2, 1, 3, 0], ["--zero_is_not_annotated", "--labels", "wound", "background", "ruler"]),
        ([1, 2, 3, 0], ["--zero_is_not_annotated", "--labels", "background", "wound", "ruler"]),
        ([1, 2, 3, 0], ["--not_annotated", "0", "--remap", "1=0", "2=1", "3=2", "--labels", "wound", "ruler"]),
        ([0, 1, 2, 255], ["--not_annotated", "255", "--labels", "background", "wound", "ruler"]),
    ],
)
def test_label_layers(values, flags, caplog):
    for seed, case in enumerate(("a", "b")):
        volume(np.random.default_rng(seed).normal(size=(3, *STROKES.shape)).astype(np.float32), f"scans/{case}.nii.gz")
        volume(np.stack([np.array(values, np.uint8)[STROKES]] * 3), f"masks/{case}.nii.gz")
    make("scans", "masks", "--channel_names", "MRI", *flags)
    dataset = checked()
    assert dataset.description.raw["labels"] == {"background": 0, "wound": 1, "ruler": 2, "ignore": 3}
    assert np.array_equal(label(dataset, "a"), np.stack([STROKES] * 3))
    assert "marked as background" not in caplog.text


def test_segments_where_nothing_drawn_is_not_annotated():
    far = np.zeros(SHAPE, bool)
    far[:, 0] = True
    for seed, case in enumerate("ab"):
        scan(Path(f"scans/{case}.nii.gz"), seed)
        parts = [("Background", 1, 0, far), ("liver", 2, 0, LIVER & ~TUMOUR), ("tumour", 3, 0, TUMOUR)]
        segmentation(Path(f"masks/{case}.seg.nrrd"), parts)
    words = ["scans/{case}.nii.gz", "masks/{case}.seg.nrrd", "--channel_names", "CT", "--zero_is_not_annotated"]
    make(*words, "--labels", "liver", "tumour")
    dataset = checked()
    assert dataset.description.raw["labels"] == {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
    expected = np.where(TUMOUR, 2, np.where(LIVER, 1, np.where(far, 0, 3)))
    assert np.array_equal(label(dataset, "a"), expected)


def test_a_background_that_is_never_marked_is_warned_of(capsys):
    photographs(coloured(BLACK, RED, GREEN, BLACK))
    make("photos", "masks", "--not_annotated", "black", "--labels", "wound=red", "ruler=lime")
    assert "nothing is marked as background in any mask" in capsys.readouterr().err
    assert np.array_equal(label(checked(), "a1")[0], np.array([3, 1, 2, 3])[STROKES])


def test_masks_without_marked_background_are_named(capsys):
    with_background, without = coloured(BLUE, RED, GREEN, BLACK), coloured(BLACK, RED, GREEN, BLACK)
    photographs(lambda name, path: (without if name == "a2" else with_background)(name, path))
    words = ["photos", "masks", "--not_annotated", "black", "--labels", "background=blue", "wound=red", "ruler=lime"]
    make(*words)
    assert "nothing is marked as background in 1 of 3 masks (a2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says", "status"),
    [
        (["--not_annotated", "white"], "--not_annotated white: no mask has it", 1),
        (["--not_annotated", "purplish"], "'purplish' is no value of these masks", 2),
        (["--not_annotated", "black", "--threshold", "9"], "--threshold makes one class", 2),
        (["--not_annotated", "black", "--zero_is_not_annotated"], "not allowed with", 2),
        (["--not_annotated", "black", "--labels", "wound=red", "ruler=lime"], "no class to the colours #0000ff", 1),
    ],
)
def test_what_does_not_fit(flags, says, status, capsys):
    photographs(coloured(BLUE, RED, GREEN, BLACK))
    make("photos", "masks", *flags, status=status)
    assert says in capsys.readouterr().err


def test_values_that_labels_do_not_name(capsys):
    photographs(lambda name, path: save(np.array([1, 2, 4, 0], np.uint8)[STROKES], path))
    words = ["photos", "masks", "--zero_is_not_annotated", "--labels", "background", "wound", "ruler"]
    make(*words, status=2)
    assert "names the values 1 to 3, background among them, but masks have 1, 2, 4" in capsys.readouterr().err


def test_a_file_for_each_class_says_nothing_of_what_is_not_annotated(capsys):
    photographs(lambda name, path: save((STROKES == 1).astype(np.uint8), path.with_name(f"{name}_wound.png")))
    make("photos", "masks/{case}_{class}.png", "--labels", "wound", "--zero_is_not_annotated", status=2)
    assert "nothing there says what is not annotated" in capsys.readouterr().err


def test_by_the_api():
    photographs(coloured(BLUE, RED, GREEN, BLACK))
    with pytest.raises(UsageError, match="both say"):
        api.make_dataset("photos", "masks", "Toy", 12, not_annotated="black", zero_is_not_annotated=True)
    labels = ["background=blue", "wound=red", "ruler=lime"]
    draft = api.make_dataset("photos", "masks", "Toy", 12, labels=labels, zero_is_not_annotated=True)
    assert draft.coding.names == ("background", "wound", "ruler", "ignore")
    assert run_command("samunet_plan_and_preprocess", ["-d", "12"]) == 0


def test_scores_of_references_in_part_say_so(work, capsys):
    mask = np.zeros(STROKES.shape, np.uint8)
    mask[2, 3:7] = 1
    for case, reference in (("a", np.where(STROKES == 2, 3, STROKES)), ("b", mask)):
        save(mask, f"preds/{case}.png")
        save(reference.astype(np.uint8), f"references/{case}.png")
    content = '{"channel_names": {"0": "x"}, "labels": {"background": 0, "wound": 1, "ruler": 2, "ignore": 3}, '
    (work / "preds" / "dataset.json").write_text(content + '"file_ending": ".png"}')
    assert run_command("samunet_evaluate_folder", ["references", "preds"]) == 0
    assert "scores count annotated voxels only: 1 of 2 references are annotated in part" in capsys.readouterr().out
    summary = api.evaluate(predictions="preds", references="references")
    first, second = summary["metric_per_case"]
    assert first["n_ignored"] == (STROKES >= 2).sum()
    assert "n_ignored" not in second
    assert first["metrics"]["1"]["Dice"] == 1
