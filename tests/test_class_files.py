"""``samunet_make_dataset`` where every class has a file of its own, and where images are DICOM series."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from test_imageio_dicom import VOXELS, write_series
from test_make_dataset import MASK, checked, label, make, picture, save, tree, volume

from samunet.imageio.registry import reader_for

LIVER, TUMOUR = (MASK == 1), np.zeros_like(MASK, bool)
TUMOUR[4:5, 4:6] = True
BOTH = LIVER.astype(np.uint8) + TUMOUR  # tumour inside liver: 0, 1, 2


@pytest.fixture(autouse=True)
def work(samunet_folders, monkeypatch):
    (samunet_folders / "work").mkdir()
    monkeypatch.chdir(samunet_folders / "work")


def stacked(mask):
    return np.stack([np.zeros_like(MASK), mask.astype(np.uint8), mask.astype(np.uint8)])


def scans(liver=LIVER, tumour=TUMOUR, cases=("anna", "bert"), origin=(5.0, -3.0, 2.0)):
    """CT volumes in ``scans``, a file per class beside them; ``bert`` has no tumour, and no file of it."""
    for seed, case in enumerate(cases):
        values = np.random.default_rng(seed).normal(size=(3, *MASK.shape)).astype(np.float32)
        volume(values, f"scans/{case}_ct.nii.gz")
        volume(stacked(liver), f"scans/{case}_liver.nii.gz")
        if case != "bert":
            volume(7 * stacked(tumour), f"scans/{case}_tumour.nii.gz", origin=origin)


VOLUMES = ("scans/{case}_ct.nii.gz", "scans/{case}_{class}.nii.gz", "--channel_names", "CT")


def test_files_beside_each_other_are_painted_in_order(capsys, caplog):
    scans()
    volume(stacked(LIVER), "scans/anna_spleen.nii.gz")
    before = tree(".")
    with caplog.at_level(logging.WARNING):
        make(*VOLUMES, "--labels", "liver", "tumour", "--paint_in_order")
    assert tree(".") == before
    dataset = checked()
    assert dataset.description.labels.names == ("background", "liver", "tumour")
    assert dataset.description.file_ending == ".nii.gz"
    assert np.array_equal(label(dataset, "anna"), stacked(BOTH))
    assert np.array_equal(label(dataset, "bert"), stacked(LIVER))
    table = capsys.readouterr().out
    assert "liver 2; tumour 1 (no file, so no tumour: bert)" in table
    row = next(line.split() for line in table.splitlines() if "tumour over liver" in line)
    assert row == ["tumour", "over", "liver", "2", "1", "4", "0.556%", "tumour"]
    assert "does not name their class: scans/anna_spleen.nii.gz" in caplog.text
    raw = json.loads((dataset.folder / "dataset.json").read_text())["raw_values"]
    assert raw == {"nothing": 0, "liver": 1, "tumour": 2, "tumour over liver": 2}


def test_an_overlap_is_refused_unless_the_order_decides(capsys):
    scans()
    make(*VOLUMES, "--labels", "liver", "tumour", status=1)
    message = capsys.readouterr().err
    assert "classes overlap: anna: tumour over liver (4 voxels)" in message
    assert "--paint_in_order (the order is liver tumour)" in message
    assert list(Path("../raw").iterdir()) == []
    make(*VOLUMES, "--labels", "tumour", "liver", "--paint_in_order", status=1)
    assert "nothing is left of tumour: later classes, such as liver, cover it" in capsys.readouterr().err
    assert list(Path("../raw").iterdir()) == []


def test_classes_that_do_not_overlap_need_no_flag():
    scans(liver=LIVER & ~TUMOUR)
    make(*VOLUMES, "--labels", "liver", "tumour")
    dataset = checked()
    assert np.array_equal(label(dataset, "anna"), stacked(BOTH))
    assert "raw_values" not in dataset.description.raw


CLASSES = (MASK == 1, MASK == 2)


def pictures(form, files):
    """Pictures ``a1`` and ``a2`` in ``photos``; ``form`` names a class's file, ``files`` makes its content."""
    for seed, case in enumerate(("a1", "a2")):
        save(picture(seed), f"photos/{case}.png")
        for name, mask in zip(("cup", "disc"), CLASSES):
            save(files(mask), form.format_map({"case": case, "class": name}))


@pytest.mark.parametrize("form", ["masks/{class}/{case}.png", "masks/{case}/{class}.png", "masks/{case}_{class}.png"])
@pytest.mark.parametrize(
    "files",
    [
        lambda mask: mask.astype(np.uint8),
        lambda mask: 255 * mask.astype(np.uint8),
        lambda mask: mask[..., None] * np.array([200, 10, 10], np.uint8),
    ],
    ids=["one", "white", "red"],
)
def test_pictures(form, files):
    pictures(form, files)
    make("photos", form, "--labels", "background", "cup", "optic_disc=disc")
    dataset = checked()
    assert dataset.description.labels.names == ("background", "cup", "optic_disc")
    assert np.array_equal(label(dataset, "a2")[0], MASK)


def test_several_files_of_a_class_are_joined(capsys):
    save(picture(0), "photos/a1.png")
    for number, row in enumerate((2, 5, 8)):
        lesion = np.zeros_like(MASK)
        lesion[row : row + 2] = 255
        save(lesion, f"masks/a1/lesion_{number}.png")
    save(np.eye(*MASK.shape, 9, dtype=np.uint8), "masks/a1/vessel_0.png")
    make("photos", "masks/{case}/{class}_*.png", "--labels", "lesion", "vessel")
    assert np.flatnonzero(label(checked(), "a1")[0, :, 0]).tolist() == [2, 3, 5, 6, 8, 9]
    assert "lesion 3; vessel 1" in capsys.readouterr().out


def test_numbered_structures_in_one_file_are_one_class_on_request(capsys):
    pictures("masks/{class}/{case}.png", lambda mask: np.cumsum(mask, 1, dtype=np.uint8) * mask)
    call = ("photos", "masks/{class}/{case}.png", "--labels", "cup", "disc")
    make(*call, status=1)
    message = capsys.readouterr().err
    assert "is the file of one class, but has 4 values besides 0: 1, 2, 3, 4" in message
    assert "--threshold 0" in message
    make(*call, "--threshold", "0")
    assert np.array_equal(label(checked(), "a1")[0], MASK)


def test_masks_of_test_cases():
    pictures("masks/{class}/{case}.png", lambda mask: mask.astype(np.uint8))
    for folder in ("photos", "masks/cup", "masks/disc"):
        target = Path("test", folder, "a2.png")
        target.parent.mkdir(parents=True)
        Path(folder, "a2.png").rename(target)
    form = "masks/{class}/{case}.png"
    call = ("photos", form, "--labels", "cup", "disc", "--test_images", "test/photos", "--test_masks")
    make(*call, "test/masks/cup", status=2)
    make(*call, f"test/{form}")
    dataset = checked()
    assert list(dataset.cases) == ["a1"]
    written = reader_for(".png").read_label(dataset.folder / "labelsTs" / "a2.png")[0]
    assert np.array_equal(written[0], MASK)


def test_a_file_at_another_place_is_named(capsys):
    scans(origin=(0.0, 0.0, 0.0))
    call = (*VOLUMES, "--labels", "liver", "tumour", "--paint_in_order")
    make(*call, status=1)
    message = capsys.readouterr().err
    assert "anna_tumour.nii.gz has the origin (0, 0, 0) mm, but anna_ct.nii.gz has (5, -3, 2) mm" in message
    make(*call, "--tolerate_geometry")
    assert np.array_equal(label(checked(), "anna"), stacked(BOTH))


def smaller_tumour():
    volume(stacked(TUMOUR)[:2], "scans/anna_tumour.nii.gz")


def damaged_tumour():
    file = Path("scans/anna_tumour.nii.gz")
    file.write_bytes(file.read_bytes()[:60])


def no_class_files():
    Path("scans/bert_liver.nii.gz").unlink()


def all_empty():
    for file in (*Path("scans").glob("*_liver*"), *Path("scans").glob("*_tumour*")):
        volume(0 * stacked(LIVER), file)


LABELS = ("--labels", "liver", "tumour", "--paint_in_order")


@pytest.mark.parametrize(
    ("damage", "call", "says", "status"),
    [
        (None, VOLUMES, ["{class} stands for the names of --labels", "files have ct, liver, tumour"], 2),
        (None, (*VOLUMES, "--labels", "liver", "cyst"), ["no file is of the class cyst", "_tumour", "cyst=TEXT"], 2),
        (None, (*VOLUMES, *LABELS, "--remap"), ["--remap numbers the values"], 2),
        (None, (*VOLUMES, "--labels", "a", "b"), ["nothing matches", "{class} for a or b, or --labels NAME=TEXT"], 2),
        (None, ("scans/{case}_{class}.nii.gz", VOLUMES[0], *LABELS), ["{class} does not belong there"], 2),
        (None, (VOLUMES[0], "scans/{case}_liver.nii.gz", *LABELS), ["--paint_in_order says which"], 2),
        (None, (VOLUMES[0], "scans/{case}_liver.nii.gz", "--labels", "a=1"), ["'1' is no colour", "--remap"], 2),
        (None, (*VOLUMES[:1], "scans/{case}_*r.nii.gz", *VOLUMES[2:]), ["the same case twice", "put {class}"], 1),
        (smaller_tumour, (*VOLUMES, *LABELS), ["anna_tumour.nii.gz has shape (2, 12, 10)", "(3, 12, 10)"], 1),
        (damaged_tumour, (*VOLUMES, *LABELS), ["anna_tumour.nii.gz"], 1),
        (no_class_files, (*VOLUMES, *LABELS), ["images without mask", "bert"], 1),
        (all_empty, (*VOLUMES, *LABELS), ["all masks are empty"], 1),
    ],
)
def test_what_does_not_fit_is_named(damage, call, says, status, capsys):
    scans()
    if damage:
        damage()
    before = tree(".")
    make(*call, status=status)
    message = capsys.readouterr().err
    for text in says:
        assert text in message
    assert "\n  -> " in message
    assert "Traceback" not in message
    assert tree(".") == before
    assert list(Path("../raw").iterdir()) == []


def test_folders_of_classes_are_told_how_to_name_them(capsys):
    pictures("masks/{class}/{case}.png", lambda mask: mask.astype(np.uint8))
    make("photos", "masks", status=1)
    assert "'masks/{class}/{case}.png' --labels liver tumour" in capsys.readouterr().err


def series(case, number):
    """A DICOM series of ``case`` in ``dicom``, and its mask in ``masks`` on the same grid."""
    Path("dicom").mkdir(exist_ok=True)
    Path("masks").mkdir(exist_ok=True)
    folder = write_series(Path("dicom", case), number=number)
    image = reader_for(".nii.gz").read_image([folder])
    reader_for(".nii.gz").write_label((VOXELS > 1000).astype(np.uint8), Path(f"masks/{case}.nii.gz"), image.geometry)
    return image


@pytest.mark.parametrize("images", ["dicom", "dicom/{case}"])
def test_dicom_series_become_nifti(images, capsys):
    read = {case: series(case, number) for number, case in enumerate(("anna", "bert"), 1)}
    before = tree(".")
    make(images, "masks", "--channel_names", "CT")
    assert tree(".") == before
    dataset = checked()
    assert sorted(dataset.cases) == ["anna", "bert"]
    assert "2 DICOM series" in capsys.readouterr().out
    for case, image in read.items():
        (file,) = dataset.cases[case].images
        assert file.name == f"{case}_0000.nii.gz"
        written = reader_for(".nii.gz").read_image([file])
        assert np.array_equal(written.array, image.array)
        for what in ("spacing", "origin", "direction"):
            assert np.allclose(getattr(written.geometry, what), getattr(image.geometry, what), atol=1e-5)
        assert np.array_equal(label(dataset, case), VOXELS > 1000)


def test_a_patients_folder_may_hold_its_masks_too():
    for number, case in enumerate(("anna", "bert"), 1):
        series(case, number)
        for name in ("liver", "spleen"):
            mask = Path(f"masks/{case}.nii.gz").read_bytes()
            Path("dicom", case, f"{name}.nii.gz").write_bytes(mask)
    make("dicom/{case}", "dicom/{case}/{class}.nii.gz", "--labels", "liver", "--channel_names", "CT")
    assert np.array_equal(label(checked(), "bert"), VOXELS > 1000)


def two_series_in_a_folder():
    write_series(Path("dicom/anna"), number=9)


def slice_missing():
    next(iter(sorted(Path("dicom/anna").glob("*_3.dcm")))).unlink()


@pytest.mark.parametrize(
    ("damage", "call", "says", "status"),
    [
        (two_series_in_a_folder, ("dicom", "masks"), ["holds 2 DICOM series", "a folder of its own"], 1),
        (slice_missing, ("dicom", "masks"), ["dicom/anna", "slices are missing"], 1),
        (None, ("dicom/anna", "masks"), ["no files that can be read", "DICOM: a subfolder for each series"], 2),
        (None, ("dicom/{case}/*.dcm", "masks"), ["nothing matches", "a DICOM series is named by its folder"], 2),
        (None, ("masks", "dicom"), ["holds DICOM files, which cannot be read as masks", ".nii.gz"], 1),
    ],
)
def test_dicom_that_does_not_fit_is_named(damage, call, says, status, capsys):
    for number, case in enumerate(("anna", "bert"), 1):
        series(case, number)
    if damage:
        damage()
    make(*call, "--channel_names", "CT", status=status)
    message = capsys.readouterr().err
    for text in says:
        assert text in message
    assert "Traceback" not in message
    assert list(Path("../raw").iterdir()) == []


def chest(number, *, right=True):
    """A radiograph of 12 x 16 px in ``CXR_png``, and a mask for each lung, that touch."""
    values = np.random.default_rng(number).integers(0, 255, (12, 16), dtype=np.uint8)
    save(values, f"CXR_png/MCUCXR_{number:04}_0.png")
    lungs = np.zeros((2, 12, 16), np.uint8)
    lungs[0, 3:9, 2:8], lungs[1, 3:10, 8:14] = 255, 255
    for name, lung in (("leftMask", lungs[0]), *([("rightMask", lungs[1])] if right else ())):
        save(lung, f"ManualMask/{name}/MCUCXR_{number:04}_0.png")
    return (lungs.max(axis=0) > 0).astype(np.uint8)


LUNGS = ("CXR_png", "ManualMask/{class}/{case}.png")


def test_both_lungs_are_one_class():
    expected = [chest(number) for number in (1, 2)]
    make(*LUNGS, "--labels", "lung=leftMask,rightMask")
    dataset = checked()
    assert dataset.description.labels.names == ("background", "lung")
    for number, mask in zip((1, 2), expected):
        assert np.array_equal(label(dataset, f"MCUCXR_{number:04}_0")[0], mask)


def test_a_lung_without_the_other_is_named(capsys):
    chest(1)
    chest(2, right=False)
    before = tree(".")
    make(*LUNGS, "--labels", "lung=leftMask,rightMask", status=1)
    printed = capsys.readouterr()
    assert "parts of lung are missing:" in printed.out + printed.err
    assert "MCUCXR_0002_0 lacks rightMask" in printed.out + printed.err
    assert tree(".") == before
