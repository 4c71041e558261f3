"""Images that lie otherwise than the training images are turned, and masks turned back."""

from itertools import permutations, product

import numpy as np
import pytest
import tifffile

from samunet.imageio.base import Geometry, Image
from samunet.imageio.registry import reader_for
from samunet.plans import Orientation
from samunet.preprocessing.orientation import (
    UNKNOWN,
    common_orientation,
    orientation_of,
    reorient,
    reorient_axes,
)

EVERY = ["".join(axes) for three in product("LR", "PA", "SI") for axes in permutations(three)]


# ITK's axes point to the left, backwards and upwards.
TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


def direction_of(orientation):
    direction = np.zeros((3, 3))
    for own, letter in enumerate(orientation):
        axis, sign = TOWARDS[letter]
        direction[axis, own] = sign
    return tuple(direction.ravel().tolist())


def geometry(direction, *, physical=True, dimension=3, spacing=(3.0, 2.0, 1.0)):
    return Geometry(spacing, physical, (0.0,) * 3, tuple(map(float, direction)), dimension)


def test_orientations_by_hand():
    assert orientation_of(geometry(np.eye(3).ravel())) == "LPS"  # ITK's own
    assert orientation_of(geometry([-1, 0, 0, 0, -1, 0, 0, 0, 1])) == "RAS"
    # x of the file leads backwards, y downwards, z to the left: a sagittal series.
    assert orientation_of(geometry([0, 0, 1, 1, 0, 0, 0, -1, 0])) == "PIL"


def test_what_has_no_orientation():
    assert orientation_of(geometry(np.eye(3).ravel(), physical=False)) == UNKNOWN
    assert orientation_of(geometry([1, 0, 0, 1], dimension=2)) == UNKNOWN
    turn = np.radians(40)
    oblique = [np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1]
    assert orientation_of(geometry(oblique)) == UNKNOWN
    turn = np.radians(30)
    tilted = [np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1]
    assert orientation_of(geometry(tilted)) == "LPS"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "LPS"), ("a.mha", "LPS"), ("a.nrrd", "LPS"), ("a.gipl", UNKNOWN), ("codes_0.nii.gz", UNKNOWN)],
)
def test_files_that_do_not_say_which_way_their_axes_run(tmp_path, name, expected):
    import nibabel
    import SimpleITK as sitk

    file = tmp_path / name
    if name.startswith("codes"):
        image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
        assert (image.header["qform_code"], image.header["sform_code"]) == (0, 0)
        nibabel.save(image, file)
        assert orientation_of(reader_for(".nii.gz", "NibabelIO").read_image([file]).geometry) == expected
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 5, 4), np.uint8)), str(file))
    ending = file.name.removeprefix(file.name.split(".")[0])
    assert orientation_of(reader_for(ending).read_image([file]).geometry) == expected


def test_tiff_volumes_and_nrrd_files_without_a_space_have_no_orientation(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 6), np.uint8), photometric="minisblack")
    (tmp_path / "a.json").write_text('{"spacing": [3, 1, 1]}')
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nspacings: 1 1 1\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    for ending in (".tif", ".nrrd"):
        read = reader_for(ending).read_image([tmp_path / f"a{ending}"]).geometry
        assert read.physical
        assert orientation_of(read) == UNKNOWN


def test_every_orientation_is_known_to_plans_and_comes_back():
    assert set(Orientation.__args__) == {UNKNOWN, *EVERY}
    for orientation in EVERY:
        assert orientation_of(geometry(direction_of(orientation))) == orientation


def test_common_orientation():
    assert common_orientation(["RAS", "RAS"]) == "RAS"
    assert common_orientation(["RAS", "LPS", "LPS"]) == "LPS"
    assert common_orientation(["RAS", "LPS"]) == common_orientation(["LPS", "RAS"]) == "LPS"  # the same for any order
    assert common_orientation(["RAS", UNKNOWN]) == common_orientation([UNKNOWN]) == UNKNOWN
    assert common_orientation(["RAS", "RAS", UNKNOWN]) == "RAS"


@pytest.mark.parametrize("own", ["LPS", "RAS", "PIL", "SLA"])
@pytest.mark.parametrize("wanted", ["LPS", "RAI", "ASR"])
def test_turned_as_simpleitk_turns(own, wanted):
    import SimpleITK as sitk

    array = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetDirection(direction_of(own))
    image.SetSpacing((1.0, 2.0, 3.0))
    expected = sitk.DICOMOrient(image, wanted)
    got = reorient(array, own, wanted)
    assert np.array_equal(got, sitk.GetArrayFromImage(expected))
    assert reorient_axes((3.0, 2.0, 1.0), own, wanted) == list(expected.GetSpacing()[::-1])
    assert np.array_equal(reorient(got, wanted, own), array)
    channels = np.stack([array, -array])
    assert np.array_equal(reorient(channels, own, wanted), np.stack([got, -got]))


def test_what_is_unknown_is_left_alone():
    array = np.arange(24).reshape(2, 3, 4)
    assert reorient(array, UNKNOWN, "RAS") is reorient(array, "RAS", UNKNOWN) is array
    assert reorient_axes((3.0, 2.0, 1.0), UNKNOWN, "RAS") == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("orientation", ["RAS", "PIL", "SLA"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_case_is_prepared_as_if_it_lay_as_the_others_do(orientation, order):
    from test_case import plans_and_configuration

    from samunet.preprocessing.case import CaseRecord, prepare_case, restore_mask

    rng = np.random.default_rng(0)
    image = np.zeros((1, 8, 9, 10), np.float32)
    image[:, 1:6, 2:8, 3:9] = rng.uniform(1, 2, (1, 5, 6, 6))
    label = (image[0] > 1.5).astype(np.int32)
    plans, configuration = plans_and_configuration(1, order=order, orientation="LPS", spacing=[2.0, 2.0])
    lying = prepare_case(Image(image, geometry(np.eye(3).ravel())), label, plans, configuration)
    spacing = tuple(reorient_axes((3.0, 2.0, 1.0), "LPS", orientation))
    place = geometry(direction_of(orientation), spacing=spacing)
    other = Image(reorient(image, "LPS", orientation), place)
    case = prepare_case(other, reorient(label, "LPS", orientation), plans, configuration)
    assert np.array_equal(case.image, lying.image)
    assert np.array_equal(case.label, lying.label)
    assert case.record.stored_spacing == lying.record.stored_spacing
    mask = rng.integers(0, 3, case.record.cropped_shape)
    record = CaseRecord.from_json(case.record.to_json())
    assert np.array_equal(restore_mask(mask, record), reorient(restore_mask(mask, lying.record), "LPS", orientation))
    several = restore_mask(np.stack([mask, 2 * mask]), record)
    assert np.array_equal(several[1], 2 * restore_mask(mask, record))
