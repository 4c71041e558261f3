"""Which reader opens what, by ending, by name, and for an image to predict."""

from pathlib import Path

import pytest

from samunet.errors import SamunetError
from samunet.imageio.registry import READERS, ending_of, image_reader_for, mask_ending, reader_for

DEFAULTS = {
    ".nii.gz": "SimpleITKIO",
    ".nii": "SimpleITKIO",
    ".nrrd": "SimpleITKIO",
    ".mha": "SimpleITKIO",
    ".gipl": "SimpleITKIO",
    ".gipl.gz": "SimpleITKIO",
    ".tif": "Tiff3DIO",
    ".tiff": "Tiff3DIO",
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
}


def test_endings_choose_the_reader():
    assert {ending: reader_for(ending).name for ending in DEFAULTS} == DEFAULTS
    assert {ending for reader in READERS for ending in reader.endings} == set(DEFAULTS)
    images = {*DEFAULTS, ".jpg", ".jpeg", ".mhd", ".nhdr"}
    assert {ending for reader in READERS for ending in reader.image_endings} == images
    assert reader_for(".PNG").name == "NaturalImage2DIO"


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("NaturalImage2DIO", ".tif"),
        ("SimpleITKIO", ".gipl"),
        ("SimpleITKIOWithReorient", ".mha"),
        ("Tiff3DIO", ".tiff"),
        ("NibabelIO", ".nii"),
        ("NibabelIOWithReorient", ".nii.gz"),
    ],
)
def test_every_name_of_nnunet_is_known(name, ending):
    assert reader_for(ending, name).name == name


def test_names_that_do_not_exist_or_do_not_fit():
    with pytest.raises(SamunetError, match=r"no reader called 'SimpelITKIO'(.|\n)*NibabelIO(.|\n)*mean SimpleITKIO\?"):
        reader_for(".nii.gz", "SimpelITKIO")
    with pytest.raises(SamunetError, match=r"NaturalImage2DIO cannot open files ending in '.nii.gz'"):
        reader_for(".nii.gz", "NaturalImage2DIO")
    with pytest.raises(SamunetError, match=r"NibabelIO cannot open files ending in '.mha'; .* one of .nii.gz, .nii\n"):
        reader_for(".mha", "NibabelIO")


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG"])
def test_a_dataset_cannot_have_a_lossy_ending(ending):
    with pytest.raises(SamunetError, match=rf"'{ending}' cannot be a dataset's file_ending(.|\n)*labels as .png"):
        reader_for(ending)


@pytest.mark.parametrize("ending", [".hdr", ".npy", ""])
def test_other_endings_are_refused(ending):
    with pytest.raises(SamunetError, match=r"file_ending must be one of .nii.gz"):
        reader_for(ending)
    with pytest.raises(SamunetError, match=r"case.* has none of the endings that can be read: .nii.gz"):
        image_reader_for(Path(f"case{ending}"), READERS[0])


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.nii.gz", ".nii.gz"),
        ("a.nii", ".nii"),
        ("A.NII.GZ", ".nii.gz"),
        ("a.b.Png", ".png"),
        ("a.seg.nrrd", ".nrrd"),
        ("a.tiff", ".tiff"),
        ("a.gz", None),
        ("a", None),
    ],
)
def test_the_ending_of_a_file(name, ending):
    assert ending_of(Path("folder.png") / name) == ending


@pytest.mark.parametrize(
    ("name", "preferred", "expected"),
    [
        ("a.nii.gz", "SimpleITKIO", "SimpleITKIO"),
        ("a.nii.gz", "NibabelIO", "NibabelIO"),
        ("a.mha", "NibabelIO", "SimpleITKIO"),
        ("a.mha", "NibabelIOWithReorient", "SimpleITKIOWithReorient"),
        ("a.nii", "SimpleITKIOWithReorient", "SimpleITKIOWithReorient"),
        ("a.png", "NibabelIOWithReorient", "NaturalImage2DIO"),
        ("a.tif", "NaturalImage2DIO", "NaturalImage2DIO"),
        ("a.tif", "SimpleITKIO", "Tiff3DIO"),
        ("a.JPG", "NaturalImage2DIO", "NaturalImage2DIO"),
        ("a.jpeg", "SimpleITKIO", "NaturalImage2DIO"),
    ],
)
def test_the_reader_of_an_image_to_predict(name, preferred, expected):
    named = next(reader for reader in READERS if reader.name == preferred)
    assert image_reader_for(Path(name), named).name == expected


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.jpg", ".png"), ("a.JPEG", ".png"), ("a.PNG", ".png"), ("a.nii.gz", ".nii.gz"), ("a.TIF", ".tif")],
)
def test_the_ending_of_a_mask(name, ending):
    assert mask_ending(Path(name)) == ending


def test_no_mask_for_what_cannot_be_read(tmp_path):
    with pytest.raises(SamunetError, match=r"a.txt has none of the endings"):
        mask_ending(Path("a.txt"))
    with pytest.raises(SamunetError, match="is a folder without DICOM files"):
        mask_ending(tmp_path)
