"""Ways to lay a volume's axes along the body's: all 48 in memory, six of them through every format that has a place."""

import itertools
import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt_transform

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.imageio.registry import reader_for
from samunet.preprocessing.orientation import orientation_of, reorient, reorient_axes, wanted_orientation

RAS = [[0, 1], [1, 1], [2, 1]]
ORIENTATIONS = [
    [[axis, sign] for axis, sign in zip(axes, signs)]
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
# Rotations by unit quaternions: (1, 2, 3, 4) / sqrt(30) is far from every axis, the other is a tilt of a few degrees.
STEEP = np.array([[-10, 2, 11], [10, -5, 10], [5, 14, 2]]) / 15
TILTED = nibabel.quaternions.quat2mat(np.array([1, 0.03, -0.05, 0.02]))
ROTATIONS = {"straight": np.eye(3), "tilted": TILTED, "steep": STEEP}
# Unequal sides, an origin away from zero, and voxels that are all different: nothing can be swapped unnoticed.
ANATOMY = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
SPACING, ORIGIN = (0.7, 0.9, 3.3), (-12.3, 45.6, 7.89)
# Each axis of the file along each of the body's, both ways.
IN_FILES = [
    [[axis, sign] for axis, sign in zip(axes, signs)]
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    for signs in ((1, -1, 1), (-1, 1, -1))
]


def name_of(orientation):
    return "".join(("LR", "PA", "IS")[axis][sign > 0] for axis, sign in orientation)


def stored_as(orientation, rotation):
    """The anatomy with its axes laid out as ``orientation`` says: voxels (x, y, z) and NIfTI affine."""
    affine = np.eye(4)
    affine[:3, :3] = rotation * SPACING
    affine[:3, 3] = ORIGIN
    change = ornt_transform(RAS, orientation)
    return apply_orientation(ANATOMY, change), affine @ inv_ornt_aff(change, ANATOMY.shape)


def as_itk(voxels, affine):
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    affine = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(affine[:3, 3])
    image.SetDirection((affine[:3, :3] / spacing).ravel())
    return image


def test_files_cover_every_axis_both_ways():
    found = {(own, *axis) for orientation in IN_FILES for own, axis in enumerate(orientation)}
    assert found == {(own, axis, sign) for own in range(3) for axis in range(3) for sign in (1, -1)}


@pytest.mark.parametrize("rotation", ["straight", "tilted"])
def test_every_orientation_is_found_and_turned(rotation):
    """In memory: the orientation of each of the 48, and its voxels and sides turned to RAS and back."""
    for orientation in ORIENTATIONS:
        voxels, affine = stored_as(orientation, ROTATIONS[rotation])
        image = as_itk(voxels, affine)
        sides = image.GetSpacing()[::-1]
        place = Geometry(sides, True, image.GetOrigin(), image.GetDirection(), 3)
        assert orientation_of(place) == name_of(orientation)
        turned = reorient(voxels.T, name_of(orientation), "RAS")
        assert np.array_equal(turned, ANATOMY.T)
        assert np.array_equal(reorient(turned, "RAS", name_of(orientation)), voxels.T)
        assert reorient_axes(sides, name_of(orientation), "RAS") == pytest.approx(SPACING[::-1])


@pytest.mark.parametrize("rotation", ["straight", "steep"])
@pytest.mark.parametrize("orientation", IN_FILES, ids=name_of)
@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_nifti_is_restored_bit_for_bit(tmp_path, name, orientation, rotation):
    voxels, affine = stored_as(orientation, ROTATIONS[rotation])
    path, mask = tmp_path / "image.nii", tmp_path / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    reader = reader_for(".nii", name)
    image = reader.read_image([path])
    geometry = Geometry.from_json(json.loads(json.dumps(image.geometry.to_json())))
    assert geometry == image.geometry
    reader.write_label(image.array[0].astype(int), mask, geometry)
    source, written = nibabel.load(path), nibabel.load(mask)
    assert np.array_equal(written.dataobj, voxels)
    assert np.array_equal(written.affine, source.affine)
    for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z"):
        # Behind pixdim[3] stand axes that the files do not have.
        assert np.array_equal(written.header[field].ravel()[:4], source.header[field].ravel()[:4])
    first, second = sitk.ReadImage(str(path)), sitk.ReadImage(str(mask))
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(first, attribute)() == getattr(second, attribute)()
    # What reads the mask as the image was read finds the same array and place.
    label, again = reader.read_label(mask)
    assert np.array_equal(label, image.array[0])
    assert (again.spacing, again.origin, again.direction) == (geometry.spacing, geometry.origin, geometry.direction)


@pytest.mark.parametrize("rotation", ["straight", "steep"])
@pytest.mark.parametrize("orientation", IN_FILES, ids=name_of)
@pytest.mark.parametrize("name", ["SimpleITKIO", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_are_restored_bit_for_bit(tmp_path, ending, name, orientation, rotation):
    voxels, affine = stored_as(orientation, ROTATIONS[rotation])
    path, mask = str(tmp_path / f"image{ending}"), str(tmp_path / f"mask{ending}")
    sitk.WriteImage(as_itk(voxels, affine), path)
    reader = reader_for(ending, name)
    image = reader.read_image([path])
    geometry = Geometry.from_json(json.loads(json.dumps(image.geometry.to_json())))
    assert geometry == image.geometry
    reader.write_label(image.array[0].astype(int), mask, geometry)
    first, second = sitk.ReadImage(path), sitk.ReadImage(mask)
    assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(first, attribute)() == getattr(second, attribute)()


@pytest.mark.parametrize("orientation", IN_FILES, ids=name_of)
@pytest.mark.parametrize("name", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_gipl_keeps_all_that_itk_keeps(tmp_path, name, orientation):
    voxels, affine = stored_as(orientation, STEEP)
    path, mask = str(tmp_path / "image.gipl"), str(tmp_path / "mask.gipl")
    sitk.WriteImage(as_itk(voxels, affine), path)
    reader = reader_for(".gipl", name)
    image = reader.read_image([path])
    reader.write_label(image.array[0].astype(int), mask, image.geometry)
    first, second = sitk.ReadImage(path), sitk.ReadImage(mask)
    # The format's reader in ITK drops the direction, so there is none to restore.
    assert first.GetDirection() == tuple(np.eye(3).ravel())
    assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(first, attribute)() == getattr(second, attribute)()


@pytest.mark.parametrize("rotation", list(ROTATIONS))
@pytest.mark.parametrize(
    ("name", "ending"),
    [
        *(("SimpleITKIOWithReorient", ending) for ending in (".nii.gz", ".nii", ".nrrd", ".mha")),
        *(("NibabelIOWithReorient", ending) for ending in (".nii.gz", ".nii")),
    ],
)
def test_reorienting_readers_have_volumes_turned_as_itk_and_nibabel_turn_them(tmp_path, name, ending, rotation):
    """Whatever the plans say, and however oblique the axes are: by those that they are closest to."""
    for orientation in IN_FILES:
        voxels, affine = stored_as(orientation, ROTATIONS[rotation])
        path = tmp_path / f"image{ending}"
        sitk.WriteImage(as_itk(voxels, affine), str(path))
        image = reader_for(".nii.gz", name).read_image([path])
        own, wanted = orientation_of(image.geometry), wanted_orientation(image.geometry, "")
        assert wanted == "RAS"
        turned = reorient(image.array[0], own, wanted)
        assert np.array_equal(turned, sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS")))
        if rotation != "steep":
            assert np.array_equal(turned, ANATOMY.T), name_of(orientation)
            assert reorient_axes(image.geometry.spacing, own, wanted) == pytest.approx(SPACING[::-1])
        if ending.startswith(".nii"):
            canonical = nibabel.as_closest_canonical(nibabel.load(path))
            assert np.array_equal(turned, np.asarray(canonical.dataobj).T)
        plain = reader_for(".nii.gz", "SimpleITKIO").read_image([path])
        assert wanted_orientation(plain.geometry, "") == ""
        assert np.array_equal(plain.array, image.array)


def test_channels_in_different_orientations_meet_on_the_first_grid(tmp_path):
    paths = [tmp_path / f"c_{index:04d}.nii.gz" for index in range(2)]
    for path, orientation in zip(paths, (ORIENTATIONS[11], ORIENTATIONS[38])):
        voxels, affine = stored_as(orientation, TILTED)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    image = reader_for(".nii.gz", "SimpleITKIO").read_image(paths)
    assert np.array_equal(image.array[0], image.array[1])
    assert image.geometry == reader_for(".nii.gz", "SimpleITKIO").read_image(paths[:1]).geometry


@pytest.mark.parametrize("orientation", IN_FILES, ids=name_of)
def test_nibabel_and_itk_find_the_same_place(tmp_path, orientation):
    voxels, affine = stored_as(orientation, STEEP)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "image.nii")
    first, second = (
        reader_for(".nii", name).read_image([tmp_path / "image.nii"]) for name in ("SimpleITKIO", "NibabelIO")
    )
    assert np.array_equal(first.array, second.array)
    for attribute in ("spacing", "origin", "direction"):
        assert getattr(first.geometry, attribute) == pytest.approx(getattr(second.geometry, attribute), abs=1e-5)


def test_a_2d_file_cannot_be_reoriented(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(SamunetError, match=r"a.nii is 2D(.|\n)*to NibabelIO$"):
        reader_for(".nii", "NibabelIOWithReorient").read_image([tmp_path / "a.nii"])


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
def test_2d_nifti_has_the_same_geometry_in_both_readers(tmp_path, name):
    affine = np.diag([0.5, 0.8, 1, 1])
    affine[:2, 3] = 3, 4
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4), np.uint8), affine), tmp_path / "a.nii")
    geometry = reader_for(".nii", name).read_image([tmp_path / "a.nii"]).geometry
    assert geometry.dimension == 2
    assert geometry.spacing == pytest.approx((999 * 0.8, 0.8, 0.5))
    assert geometry.origin == pytest.approx((-3, -4))
    assert geometry.direction == pytest.approx((-1, 0, 0, -1))


def test_placement_of_a_vector_nrrd_and_of_other_spaces(tmp_path):
    header = (
        "NRRD0005\ntype: uint8\ndimension: 4\nspace: right-anterior-superior\nsizes: 3 2 2 2\n"
        "space directions: none (0.1,0.2,0) (-0.2,0.1,0) (0,0,3.3)\nkinds: vector domain domain domain\n"
        "encoding: raw\nspace origin: (1.1,2.2,3.3)\n\n"
    )
    path, mask = tmp_path / "a.nrrd", tmp_path / "m.nrrd"
    path.write_bytes(header.encode() + bytes(24))
    reader = reader_for(".nrrd")
    image = reader.read_image([path], channels=3)
    reader.write_label(np.ones((2, 2, 2), int), mask, image.geometry)
    assert b"space directions: (0.1,0.2,0) (-0.2,0.1,0) (0,0,3.3)\n" in mask.read_bytes()
    first, second = sitk.ReadImage(str(path)), sitk.ReadImage(str(mask))
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(first, attribute)() == getattr(second, attribute)()
    assert reader.read_label(mask)[0].sum() == 8


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_numbers_that_itk_itself_would_change(tmp_path, ending):
    random, changed, reader = np.random.default_rng(0), 0, reader_for(ending)
    names = [str(tmp_path / f"{name}{ending}") for name in ("image", "mask", "itk")]
    for _ in range(20):
        image = sitk.GetImageFromArray(np.zeros((2, 2, 2), np.uint8))
        image.SetDirection(np.linalg.qr(random.normal(size=(3, 3)))[0].ravel())
        image.SetSpacing(random.uniform(0.1, 5, 3))
        image.SetOrigin(random.normal(scale=300, size=3))
        sitk.WriteImage(image, names[0])
        reader.write_label(np.ones((2, 2, 2), int), names[1], reader.read_image(names[:1]).geometry)
        sitk.WriteImage(sitk.ReadImage(names[0]), names[2])
        first, second, by_itk = map(sitk.ReadImage, names)
        for attribute in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(first, attribute)() == getattr(second, attribute)()
            changed += getattr(first, attribute)() != getattr(by_itk, attribute)()
    assert (changed > 0) == (ending == ".nrrd")
