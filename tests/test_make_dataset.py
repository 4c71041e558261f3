"""``samunet_make_dataset``: every form of folders and masks becomes a dataset that passes the complete check."""

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from samunet.commands import run_command
from samunet.dataset.check import complete_check
from samunet.dataset.layout import read_dataset
from samunet.dataset.splits import make_splits
from samunet.imageio.registry import reader_for
from samunet.preprocessing.case import read_case

NAME = "Dataset012_Toy"
MASK = np.zeros((12, 10), np.uint8)
MASK[2:6, 3:7], MASK[8:10] = 1, 2
RED_GREEN = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)


@pytest.fixture(autouse=True)
def work(samunet_folders, monkeypatch):
    (samunet_folders / "work").mkdir()
    monkeypatch.chdir(samunet_folders / "work")


def save(array, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def volume(array, path, spacing=(1.0, 1.5, 3.0), origin=(5.0, -3.0, 2.0)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def picture(seed, colours=True):
    shape = (*MASK.shape, 3) if colours else MASK.shape
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def photographs(masks, names=("a1", "a2", "b1"), mask_ending=".png", mask_suffix="", image_ending=".png"):
    """Pictures in ``photos``, and what ``masks`` makes of each name in ``masks``."""
    for seed, name in enumerate(names):
        save(picture(seed), f"photos/{name}{image_ending}")
        masks(name, Path(f"masks/{name}{mask_suffix}{mask_ending}"))


def make(*arguments, status=0):
    assert run_command("samunet_make_dataset", [*map(str, arguments), "--name", "Toy", "--id", "12"]) == status


def checked():
    """The dataset, after the complete check has found nothing to repair."""
    dataset = read_dataset(NAME)
    report = complete_check(dataset, progress=False)
    assert [problem.text for problem in report.problems if not problem.warning] == []
    return dataset


def label(dataset, case):
    return reader_for(dataset.description.file_ending).read_label(dataset.cases[case].label)[0]


def tree(folder):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(folder).rglob("*") if file.is_file()}


def test_masks_with_classes(capsys):
    photographs(lambda name, path: save(MASK, path), mask_suffix="_mask", image_ending=".jpg")
    before = tree(".")
    make("photos", "masks", "--labels", "cup", "disc")
    dataset = checked()
    assert tree(".") == before
    assert sorted(dataset.cases) == ["a1", "a2", "b1"]
    assert dataset.description.channel_names == ("R", "G", "B")
    assert dataset.description.labels.names == ("background", "cup", "disc")
    assert np.array_equal(label(dataset, "a1")[0], MASK)
    copy = dataset.cases["a1"].images[0]
    assert (copy.name, copy.read_bytes()) == ("a1_0000.jpg", Path("photos/a1.jpg").read_bytes())
    table = capsys.readouterr().out
    assert "3 cases: a1, a2, b1" in table
    assert "samunet_plan_and_preprocess -d 012 --verify_dataset_integrity" in table
    row = next(line.split() for line in table.splitlines() if line.endswith("disc"))
    assert row == ["2", "2", "3", "60", "16.667%", "disc"]


def black_and_white(name, path):
    save(255 * (MASK > 0).astype(np.uint8), path)


def black_and_white_as_rgb(name, path):
    save(np.repeat(255 * (MASK > 0).astype(np.uint8)[..., None], 3, axis=2), path)


def one_bit(name, path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(MASK > 0).save(path)


def test_dots_in_names_are_no_ending(capsys):
    photographs(lambda name, path: save(MASK, path), [f"scan_png.rf.{i:012x}" for i in range(3)], image_ending=".jpg")
    make("photos", "masks", "--labels", "cup", "disc")
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["images"])
    assert row.split(maxsplit=1)[1] == "3 .jpg"


@pytest.mark.parametrize("masks", [black_and_white, black_and_white_as_rgb, one_bit])
@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_black_and_white_becomes_0_and_1(masks, ending):
    photographs(masks, mask_ending=ending)
    make("photos", "masks", "--labels", "vessel")
    dataset = checked()
    assert dataset.description.labels.names == ("background", "vessel")
    assert np.array_equal(label(dataset, "b1")[0], MASK > 0)


def palette(name, path):
    """Indices 0 to 2, the same colours in every file."""
    path.parent.mkdir(exist_ok=True)
    picture = Image.fromarray(MASK, "L")
    picture.putpalette(RED_GREEN.ravel().tolist())
    picture.save(path)


def turned_palette(name, path):
    """The same picture, but b1 has its colours in another order: indices mean nothing then."""
    path.parent.mkdir(exist_ok=True)
    order = [0, 2, 1] if name == "b1" else [0, 1, 2]
    picture = Image.fromarray(np.array(order, np.uint8)[MASK], "L")
    picture.putpalette(RED_GREEN[order].ravel().tolist())
    picture.save(path)


def test_a_palette_gives_its_indices():
    photographs(palette)
    make("photos", "masks")
    dataset = checked()
    assert dataset.description.labels.names == ("background", "class_1", "class_2")
    assert np.array_equal(label(dataset, "b1")[0], MASK)


def colours(name, path):
    """An empty mask, a2, is stored as grey, as programs do it."""
    save(np.zeros_like(MASK) if name == "a2" else RED_GREEN[MASK], path)


def on_nothing(name, path):
    """Drawn on a transparent layer whose hidden colour is white."""
    opaque = np.where(MASK > 0, 255, 0).astype(np.uint8)[..., None]
    drawn = np.where(MASK[..., None] > 0, RED_GREEN[MASK], 255).astype(np.uint8)
    save(np.concatenate([drawn, opaque], axis=2), path)


@pytest.mark.parametrize("masks", [colours, turned_palette, on_nothing])
@pytest.mark.parametrize("remap", [["#ff0000=1", "#00ff00=2"], ["255,0,0=1", "0,255,0=2"]])
def test_colours(masks, remap):
    photographs(masks)
    make("photos", "masks", "--remap", *remap, "--labels", "red", "green")
    dataset = checked()
    assert np.array_equal(label(dataset, "b1")[0], MASK)
    assert np.array_equal(label(dataset, "a2")[0], 0 * MASK if masks is colours else MASK)
    raw = json.loads((dataset.folder / "dataset.json").read_text())["raw_values"]
    assert raw == {"#000000": 0, "#00ff00": 2, "#ff0000": 1}


def test_colours_are_numbered_in_order_of_their_codes(capsys):
    photographs(colours, mask_ending=".tif")
    make("photos", "masks")
    dataset = checked()
    assert np.array_equal(label(dataset, "b1")[0], np.array([0, 2, 1])[MASK])  # 00ff00 comes before ff0000
    assert "#00ff00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--remap"], [0, 1, 2, 3]), (["--remap", "4=1", "1=3"], [0, 3, 2, 1]), (["--remap", "4=2"], [0, 1, 2, 2])],
)
def test_values_with_gaps_are_numbered_on_request(flags, expected, capsys):
    def masks(name, path):
        save(np.array([0, 1, 2, 4], np.uint8)[np.arange(120).reshape(12, 10) % 4], path)

    photographs(masks)
    make("photos", "masks", status=1)
    assert "there are 0, 1, 2, 4" in (message := capsys.readouterr().err)
    assert "--remap" in message
    assert not Path("../raw", NAME).exists()
    make("photos", "masks", *flags)
    assert label(checked(), "a1").ravel()[:4].tolist() == expected


def test_values_below_zero(capsys):
    for seed, case in enumerate("ab"):
        volume(np.random.default_rng(seed).normal(size=(3, *MASK.shape)).astype(np.float32), f"scans/{case}.nii.gz")
        volume(np.stack([MASK.astype(np.int16) - 1] * 3), f"masks/{case}.nii.gz")
    make("scans", "masks", "--channel_names", "MRI", status=1)
    assert "-1, 0, 1" in capsys.readouterr().err
    make("scans", "masks", "--channel_names", "MRI", "--remap", "0=1", "1=2", "--remap=-1=0")
    assert np.array_equal(label(checked(), "a")[0], MASK)


def test_voxels_without_annotation_are_called_ignore():
    photographs(lambda name, path: save(np.array([0, 1, 255], np.uint8)[MASK], path))
    make("photos", "masks", "--remap", "255=2", "--labels", "organ", "ignore")
    assert checked().description.labels.ignore == 2


def test_a_class_that_no_mask_has_is_named():
    photographs(lambda name, path: save(np.array([0, 1, 3], np.uint8)[MASK], path))
    make("photos", "masks", "--labels", "a", "b", "c")
    assert checked().description.labels.names == ("background", "a", "b", "c")


def test_threshold_takes_smoothed_and_jpeg_masks(capsys):
    def masks(name, path):
        soft = (255 * (MASK > 0)).astype(np.uint8)
        soft[0] = np.arange(10)
        save(soft, path)

    photographs(masks, mask_ending=".jpg")
    make("photos", "masks", status=1)
    message = capsys.readouterr().err
    assert "is a JPEG, which changes label values" in message
    assert "--threshold 127" in message
    make("photos", "masks", "--threshold", "127")
    assert np.array_equal(label(checked(), "a1")[0], MASK > 0)


def test_a_threshold_that_empties_masks_is_told(capsys, caplog):
    photographs(lambda name, path: save((MASK > 0).astype(np.uint8), path))
    make("photos", "masks", "--threshold", "127", status=1)
    assert "no mask has anything above --threshold 127" in capsys.readouterr().err
    assert not Path("../raw", NAME).exists()
    save(255 * (MASK > 0).astype(np.uint8), "masks/a1.png")
    save(0 * MASK, "masks/b1.png")  # healthy, nothing to warn of
    caplog.clear()
    make("photos", "masks", "--threshold", "127")
    told = [record.getMessage() for record in caplog.records if "nothing is above `threshold`" in record.getMessage()]
    assert ["a2.png has values up to 1" in line for line in told] == [True]


def test_smoothed_masks_are_not_taken_for_256_classes(capsys):
    photographs(lambda name, path: save(np.resize(np.arange(256, dtype=np.uint8), (16, 16)), path))
    for seed, name in enumerate(("a1", "a2", "b1")):
        save(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8), f"photos/{name}.png")
    make("photos", "masks", status=1)
    assert "256 different values" in capsys.readouterr().err


def test_more_than_255_classes():
    values = np.arange(300, dtype=np.uint16).reshape(3, 10, 10)
    for seed, case in enumerate("ab"):
        volume(np.random.default_rng(seed).normal(size=values.shape).astype(np.float32), f"scans/{case}.nii.gz")
        volume(values, f"masks/{case}.nii.gz")
    make("scans", "masks", "--channel_names", "MRI")
    dataset = checked()
    assert dataset.description.labels.values[-1] == 299
    assert np.array_equal(label(dataset, "a"), values)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_volumes_keep_their_place(ending):
    stack = np.stack([MASK] * 4)
    for seed, case in enumerate(("anna", "bert")):
        rng = np.random.default_rng(seed)
        volume(rng.normal(size=stack.shape).astype(np.float32), f"scans/{case}_ct{ending}")
        volume(stack.astype(np.float32), f"scans/{case}_liver{ending}")
    make(
        "scans/{case}_ct" + ending, "scans/{case}_liver" + ending, "--channel_names", "CT", "--labels", "liver", "cyst"
    )
    dataset = checked()
    assert dataset.description.file_ending == ending
    assert sorted(dataset.cases) == ["anna", "bert"]
    image, read = read_case(dataset.cases["anna"], dataset.description)
    assert np.allclose(image.geometry.spacing, (3.0, 1.5, 1.0))
    assert np.allclose(image.geometry.origin, (5.0, -3.0, 2.0))
    assert np.array_equal(read, stack)


def test_channels_and_patients_in_a_pattern():
    stack = np.stack([MASK] * 3)
    for seed, (patient, day) in enumerate([("p1", "d1"), ("p1", "d2"), ("p2", "d1")]):
        rng = np.random.default_rng(seed)
        folder = Path("patients", patient, day)
        for channel, sequence in enumerate(("t1c", "t1")):
            volume(
                rng.normal(100 * channel, 1, stack.shape).astype(np.float32), folder / f"{patient}_{sequence}.nii.gz"
            )
        volume(stack, folder / "seg.nii.gz")
    images, masks = "patients/{patient}/{case}/{patient}_{channel}.nii.gz", "patients/{patient}/{case}/seg.nii.gz"
    make(images, masks, "--channel_names", "T1=t1", "T1 contrast=t1c")
    dataset = checked()
    assert dataset.description.channel_names == ("T1", "T1 contrast")
    assert dataset.description.groups == {"p1_d1": "p1", "p1_d2": "p1", "p2_d1": "p2"}
    image, _ = read_case(dataset.cases["p2_d1"], dataset.description)
    assert [round(float(channel.mean()) / 100) for channel in image.array] == [1, 0]


def test_numbered_channels_and_test_cases():
    stack = np.stack([MASK] * 3)
    for folder, cases in (("images", "ab"), ("more", "xy")):
        for seed, case in enumerate(cases):
            for channel in range(2):
                rng = np.random.default_rng(10 * seed + channel + 100 * (folder == "more"))
                volume(rng.normal(size=stack.shape).astype(np.float32), f"{folder}/{case}_000{channel}.nii.gz")
    for case in "abx":
        volume(stack, f"masks/{case}.nii.gz")
    Path("masks_ts").mkdir()
    Path("masks/x.nii.gz").rename("masks_ts/x.nii.gz")
    flags = ["--channel_names", "T1", "T2", "--test_images", "more"]
    make("images", "masks", *flags)
    dataset = checked()
    assert [len(case.images) for case in dataset.cases.values()] == [2, 2]
    names = [f"{case}_000{channel}.nii.gz" for case in "xy" for channel in range(2)]
    assert sorted(file.name for file in (dataset.folder / "imagesTs").iterdir()) == names
    assert not (dataset.folder / "labelsTs").exists()
    make("images", "masks", *flags, "--test_masks", "masks_ts", "--overwrite", status=1)  # y has no mask
    assert (dataset.folder / "imagesTs").is_dir()


def test_gaps_between_channels_are_refused(capsys):
    stack = np.stack([MASK] * 3)
    for case in "ab":
        for number in range(2):
            volume(np.full(stack.shape, number, np.float32), f"images/{case}_000{number}.nii.gz")
        volume(stack, f"masks/{case}.nii.gz")
    Path("images/a_0001.nii.gz").rename("images/a_0002.nii.gz")
    make("images", "masks", "--channel_names", "T1", "T2", status=1)
    assert "numbers of channels with gaps: a has 0000, 0002" in capsys.readouterr().err


def test_numbers_of_test_images_are_channels_only_if_those_of_training_images_are():
    photographs(lambda name, path: save(MASK, path), names=("frame_0000", "frame_0001"))
    for seed in (7, 8, 9):
        save(picture(seed, colours=False), f"tests/frame_000{seed}.png")
    make("photos", "masks", "--test_images", "tests")
    names = sorted(file.name for file in (checked().folder / "imagesTs").iterdir())
    assert names == [f"frame_000{seed}_0000.png" for seed in (7, 8, 9)]


def test_tiff_stacks_keep_their_spacing(caplog):
    stack = np.stack([MASK] * 3)
    for seed, case in enumerate("ab"):
        for folder, array in (
            ("stacks", np.random.default_rng(seed).integers(0, 999, stack.shape, np.uint16)),
            ("m", stack),
        ):
            Path(folder).mkdir(exist_ok=True)
            tifffile.imwrite(f"{folder}/{case}.tif", array, photometric="minisblack")
            Path(folder, f"{case}.json").write_text('{"spacing": [5, 1, 1]}')
    Path("m/Thumbs.db").touch()
    with caplog.at_level(logging.WARNING):
        make("stacks", "m", "--channel_names", "EM")
    assert "left alone, since they are no images: m/Thumbs.db" in caplog.text
    assert "a.json" not in caplog.text
    dataset = checked()
    image, read = read_case(dataset.cases["a"], dataset.description)
    assert image.geometry.spacing == (5.0, 1.0, 1.0)
    assert np.array_equal(read, stack)


@pytest.mark.parametrize(("colours", "names"), [(True, ("R", "G", "B")), (False, ("grayscale",))])
def test_channels_of_pictures(colours, names):
    for seed, name in enumerate("ab"):
        grey = picture(seed, colours=False)
        # Grey that is stored as colours has one channel all the same.
        save(picture(seed) if colours and name == "b" else np.repeat(grey[..., None], 3, axis=2), f"photos/{name}.png")
        save(MASK, f"masks/{name}.png")
    make("photos", "masks")
    assert checked().description.channel_names == names


def test_pictures_with_16_bits():
    for seed, name in enumerate("ab"):
        save(np.random.default_rng(seed).integers(0, 4000, MASK.shape, np.uint16), f"photos/{name}.png")
        save(MASK, f"masks/{name}.png")
    make("photos", "masks")
    assert checked().description.channel_names == ("intensity",)


def test_subfolders_and_patient_pattern_make_the_splits():
    for patient in range(6):
        for side in ("left", "right"):
            save(picture(2 * patient + (side == "left")), f"eyes/p{patient}/{side}.png")
            save(MASK, f"eyes/masks/p{patient}/{side}.png")
    make("eyes", "eyes/masks", "--patient_pattern", r"^(p\d+)_")
    dataset = checked()
    assert dataset.description.groups["p3_left"] == "p3"
    splits, _ = make_splits(list(dataset.cases), dataset.description.groups)
    assert len(splits) == 5
    for split in splits:
        assert not {name[:2] for name in split["train"]} & {name[:2] for name in split["val"]}


@pytest.mark.parametrize(
    ("image", "mask", "case"),
    [
        ("x7", "x7", "x7"),
        ("x7", "x7_seg", "x7"),
        ("x7", "mask_x7", "x7"),
        ("x7_image", "x7_label", "x7"),
        ("x7_training", "x7_manual1", "x7"),
        ("x7_0000", "x7", "x7"),
        ("x7_0000", "x7-GT", "x7"),
        ("img_7", "img_7", "img_7"),
        ("scan_0007", "scan_0007", "scan_0007"),
        ("sub/7", "sub/7_mask", "sub_7"),
    ],
)
def test_names_that_belong_together(image, mask, case):
    save(picture(1), f"photos/{image}.png")
    save(MASK, f"masks/{mask}.png")
    make("photos", "masks")
    assert list(checked().cases) == [case]


def test_dry_run_writes_nothing(capsys):
    photographs(black_and_white)
    make("photos", "masks", "--dry_run")
    assert list(Path("../raw").iterdir()) == []
    assert "foreground" in (table := capsys.readouterr().out)
    assert "nothing was written" in table


def test_an_existing_dataset_is_replaced_only_on_request(capsys):
    photographs(black_and_white)
    make("photos", "masks")
    before = tree("../raw")
    make("photos", "masks", "--labels", "new", status=2)
    assert "--overwrite" in capsys.readouterr().err
    assert tree("../raw") == before
    make("photos", "masks", "--labels", "new", "--overwrite")
    assert checked().description.labels.names[1] == "new"
    assert run_command("samunet_make_dataset", ["photos", "masks", "--name", "Other", "--id", "12", "--overwrite"]) == 2
    assert "taken" in capsys.readouterr().err


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_failure_while_writing_leaves_what_was_there(existing, stop, monkeypatch):
    from samunet.conversion import write

    photographs(black_and_white)
    if existing:
        make("photos", "masks")
    before, real = tree("../raw"), write.write_case

    def fail(finding, *rest):
        if finding.case.name == "b1":
            raise stop("disk")
        real(finding, *rest)

    monkeypatch.setattr(write, "write_case", fail)
    make("photos", "masks", "--overwrite", status=130 if stop is KeyboardInterrupt else 1)
    assert tree("../raw") == before
    assert [entry.name for entry in Path("../raw").iterdir()] == [NAME] * existing


def test_a_full_disk_is_told_with_its_remedy(monkeypatch, capsys):
    photographs(black_and_white)

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    make("photos", "masks", status=1)
    message = capsys.readouterr().err
    assert "case a1: could not write" in message
    assert "free some space" in message
    assert list(Path("../raw").iterdir()) == []


def test_workers_give_the_same():
    photographs(colours)
    make("photos", "masks")
    before = tree("../raw")
    make("photos", "masks", "--overwrite", "-np", "2")
    assert tree("../raw") == before


def drop_mask():
    Path("masks/a2.png").unlink()


def drop_image():
    Path("photos/a2.png").unlink()


def other_names():
    for index, file in enumerate(sorted(Path("masks").iterdir())):
        file.rename(f"masks/drawing{index}.png")


def smaller_mask():
    save(MASK[:5], "masks/a2.png")


def half_transparent():
    save(np.full((*MASK.shape, 4), 128, np.uint8), "masks/a2.png")


def truncated():
    Path("masks/a2.png").write_bytes(Path("masks/a2.png").read_bytes()[:60])


def renamed_jpeg():
    Image.fromarray(MASK).save("masks/a2.png", format="JPEG")


def twice():
    save(picture(9), "photos/a2.bmp")


def volume_among_pictures():
    Path("photos/a2.png").unlink()
    volume(np.zeros((1, *MASK.shape), np.int16), "photos/a2.nii.gz")


def without_background():
    for name in ("a1", "a2", "b1"):
        save(1 + MASK % 2, f"masks/{name}.png")


def all_empty():
    for name in ("a1", "a2", "b1"):
        save(0 * MASK, f"masks/{name}.png")


@pytest.mark.parametrize(
    ("damage", "flags", "says", "status"),
    [
        (drop_mask, [], ["images without mask", "a2.png"], 1),
        (drop_image, [], ["masks without image", "a2.png"], 1),
        (other_names, [], ["no mask has the name of an image", "a1", "drawing0", "{case}"], 1),
        (smaller_mask, [], ["different shapes", "a2.png", "(1, 5, 10)"], 1),
        (truncated, [], ["cannot be used", "a2.png"], 1),
        (half_transparent, [], ["half transparent", "a2.png"], 1),
        (renamed_jpeg, [], ["is a JPEG", "a2.png"], 1),
        (twice, [], ["the same case twice", "a2.bmp"], 1),
        (volume_among_pictures, [], ["a2.nii.gz", "pictures without"], 1),
        (without_background, [], ["no mask has the value 0", "--remap 1=0 2=1"], 1),
        (all_empty, [], ["all masks are empty"], 1),
        (None, ["--patient_pattern", "eye"], ["'eye' matches no case", "a1"], 2),
        (None, ["--patient_pattern", "a"], ["1 of 3 cases not: b1"], 2),
        (None, ["--patient_pattern", "("], ["no regular expression"], 2),
        (None, ["--labels", "one"], ["gives 1 names (one)", "2 classes"], 2),
        (None, ["--labels", "x", "X"], ["every class from 1 on once"], 2),
        (None, ["--remap", "7=1"], ["names 7, which no mask has", "0, 1, 2"], 1),
        (None, ["--remap", "2"], ["--remap takes OLD=NEW, got '2'"], 2),
        (None, ["--remap", "2=5"], ["without gaps", "2=5"], 2),
        (None, ["--remap", "#ff0000=1"], ["'#ff0000' is no value"], 2),
        (None, ["--test_masks", "masks"], ["--test_images"], 2),
        (None, ["--channel_names", "a", "b"], ["2 channels expected", "a1 has 3"], 1),
    ],
)
def test_what_does_not_fit_is_named(damage, flags, says, status, capsys):
    photographs(lambda name, path: save(MASK, path))
    if damage:
        damage()
    before = tree(".")
    make("photos", "masks", *flags, status=status)
    message = capsys.readouterr().err
    for text in says:
        assert text in message
    assert "\n  -> " in message
    assert "Traceback" not in message
    assert tree(".") == before
    assert list(Path("../raw").iterdir()) == []


@pytest.mark.parametrize(
    ("images", "masks", "says"),
    [
        ("photo", "masks", "there is no folder photo"),
        ("photos", "photos", "folder of both images and masks"),
        ("photos/{id}.png", "masks", "{id} is no placeholder"),
        ("photos/*.png", "masks", "must say with {case}"),
        ("photos/{case}.gif", "masks", "nothing matches photos/{case}.gif"),
        ("photos/{case}_{channel}.png", "masks", "--channel_names, which are missing"),
        ("photos", "empty", "empty has no files that can be read"),
        ("photos/{case}.png", "masks/{case}{case}.png", "nothing matches"),
    ],
)
def test_wrong_places_are_usage_errors(images, masks, says, capsys):
    photographs(lambda name, path: save(MASK, path))
    Path("empty").mkdir()
    make(images, masks, status=2)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("name", "number", "says"), [("a b", "1", "letters, digits"), ("A", "x", "1 or more")])
def test_names_of_datasets(name, number, says, capsys):
    photographs(black_and_white)
    assert run_command("samunet_make_dataset", ["photos", "masks", "--name", name, "--id", number]) == 2
    assert says in capsys.readouterr().err


def test_volumes_ask_for_their_channels_name(capsys):
    volume(np.zeros((3, *MASK.shape), np.int16), "scans/a.nii.gz")
    volume(np.stack([MASK] * 3), "masks/a.nii.gz")
    make("scans", "masks", status=2)
    assert "--channel_names CT" in capsys.readouterr().err


def test_masks_at_another_place_need_tolerance(capsys):
    stack = np.stack([MASK] * 3)
    for seed, case in enumerate("ab"):
        volume(np.random.default_rng(seed).normal(size=stack.shape).astype(np.float32), f"scans/{case}.nii.gz")
        volume(stack, f"masks/{case}.nii.gz", origin=(0, 0, 0))
    make("scans", "masks", "--channel_names", "MRI", status=1)
    assert "--tolerate_geometry" in capsys.readouterr().err
    make("scans", "masks", "--channel_names", "MRI", "--tolerate_geometry")
    dataset = checked()  # labels now have the images' origin
    assert np.allclose(read_case(dataset.cases["a"], dataset.description)[0].geometry.origin, (5.0, -3.0, 2.0))


def test_the_dataset_itself_is_no_source(capsys):
    photographs(black_and_white)
    make("photos", "masks")
    before = tree("../raw")
    make(f"../raw/{NAME}/imagesTr", f"../raw/{NAME}/labelsTr", "--overwrite", status=1)
    assert "would be replaced" in capsys.readouterr().err
    assert tree("../raw") == before


def three_colours(name, path):
    save(np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[MASK], path)


def test_names_of_several_colours_must_say_whose_they_are(capsys):
    photographs(three_colours)
    make("photos", "masks", "--labels", "wound", "ruler", status=1)
    message = capsys.readouterr().err
    share = 100 * np.count_nonzero(MASK == 1) / MASK.size
    assert f"#ff0000 (red, {share:.2f}% of the pixels)" in message
    assert "#00ff00 (lime," in message
    assert "--labels 'wound=#" in message
    assert not Path("../raw", NAME).exists()


@pytest.mark.parametrize(
    "labels",
    [
        ["wound=#ff0000", "ruler=#00ff00"],
        ["wound=red", "ruler=lime"],
        ["wound=255,0,0", "ruler=rgb(0,255,0)"],
        ["background=black", "wound=#F00", "ruler=#0f0"],
    ],
)
@pytest.mark.parametrize("masks", [three_colours, turned_palette, on_nothing])
def test_names_with_colours(labels, masks):
    photographs(masks)
    make("photos", "masks", "--labels", *labels)
    dataset = checked()
    assert dataset.description.labels.names == ("background", "wound", "ruler")
    assert np.array_equal(label(dataset, "b1")[0], MASK)


def test_the_background_may_have_a_colour():
    photographs(lambda name, path: save(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0]], np.uint8)[MASK], path))
    make("photos", "masks", "--labels", "background=white", "wound=red", "ruler=black")
    assert np.array_equal(label(checked(), "a1")[0], MASK)


@pytest.mark.parametrize(
    ("labels", "says", "status"),
    [
        (["wound=red", "ruler"], "but none for ruler", 2),
        (["wound=red", "ruler=2"], "'2' is no colour", 2),
        (["wound=red", "ruler=blue"], "names #0000ff, which no mask has", 1),
        (["wound=red"], "gives no class to the colours #00ff00", 1),
    ],
)
def test_colours_that_do_not_fit(labels, says, status, capsys):
    photographs(three_colours)
    make("photos", "masks", "--labels", *labels, status=status)
    assert says in capsys.readouterr().err


def linked_patients():
    """Six patients, four of them links to another disk, and a link from a patient back to all of them."""
    for index, case in enumerate(("p0", "p1", "p2", "p3", "p4", "p5")):
        home = Path("store" if index < 4 else "patients", case)
        volume(np.random.default_rng(index).normal(size=(3, *MASK.shape)).astype(np.float32), f"{home}/t1.nii.gz")
        volume(np.stack([MASK] * 3), f"{home}/seg.nii.gz")
        if index < 4:
            Path("patients").mkdir(exist_ok=True)
            Path("patients", case).symlink_to(home.absolute())
    Path("store/p0/all").symlink_to(Path("patients").absolute())


VOLUMES = ("patients/{case}/t1.nii.gz", "patients/{case}/seg.nii.gz", "--channel_names", "T1", "--labels", "a", "b")


def test_linked_folders_are_followed():
    linked_patients()
    make(*VOLUMES)
    assert sorted(checked().cases) == ["p0", "p1", "p2", "p3", "p4", "p5"]


def test_links_that_lead_nowhere_are_named(capsys):
    linked_patients()
    shutil.rmtree("store/p2")
    make(*VOLUMES, status=1)
    message = capsys.readouterr().err
    assert "links that lead nowhere: patients/p2 -> " in message


def test_folders_that_cannot_be_opened_are_named(capsys, monkeypatch):
    linked_patients()
    opened = Path.iterdir

    def iterdir(self):
        if self.name == "p4":
            raise PermissionError(13, "Permission denied")
        return opened(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    make(*VOLUMES, status=1)
    assert "patients/p4 cannot be opened: Permission denied" in capsys.readouterr().err


def test_patients_without_any_match_are_named(caplog):
    linked_patients()
    Path("patients/p5/t1.nii.gz").rename("patients/p5/T1.nii.gz")
    Path("patients/p5/seg.nii.gz").rename("patients/p5/Seg.nii.gz")
    make(*VOLUMES)
    assert "left out, since nothing in them matches patients/{case}/t1.nii.gz: p5" in caplog.text


@pytest.mark.parametrize("call", [("slices", "masks"), ("slices/{case}/*", "masks/{case}.png")])
def test_one_mask_for_many_images_is_explained(call, capsys):
    for number in range(3):
        save(picture(number), f"slices/anna/{number}.png")
    save(MASK, "masks/anna.png")
    make(*call, status=1)
    message = capsys.readouterr().err
    assert "anna" in message
    assert "slices under one mask, save them as one volume" in message
    assert "write {channel}" in message
