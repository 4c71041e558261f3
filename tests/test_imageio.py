import gzip
import json
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as pillow

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.imageio.registry import reader_for

# Rotation by the unit quaternion (1, 2, 3, 4) / sqrt(30): no axis of it is aligned with anything.
OBLIQUE = np.array([[-10, 2, 11], [10, -5, 10], [5, 14, 2]]) / 15


@pytest.fixture
def medical():
    return reader_for(".nii.gz")


def affine(spacing=(0.7, 0.9, 3.3), origin=(-12.3, 45.6, 7.89)):
    matrix = np.eye(4)
    matrix[:3, :3] = OBLIQUE * spacing
    matrix[:3, 3] = origin
    return matrix


def save_nifti(path, array, matrix=None, qform=1, sform=1, dtype=None):
    """``array`` in nibabel's axis order (x, y, z)."""
    image = nibabel.Nifti1Image(array, np.eye(4) if matrix is None else matrix, dtype=dtype)
    image.set_qform(matrix, qform)
    image.set_sform(matrix, sform)
    nibabel.save(image, path)


def test_axes_spacing_and_values_agree_with_nibabel(medical, tmp_path):
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) - 5
    save_nifti(tmp_path / "a.nii.gz", voxels, np.diag([0.5, 1.5, 4.0, 1.0]))
    image = medical.read_image([tmp_path / "a.nii.gz"])
    assert image.array.dtype == np.float32
    assert image.array.shape == (1, 4, 3, 2)
    assert np.array_equal(image.array[0], voxels.transpose(2, 1, 0))
    assert image.geometry.spacing == (4.0, 1.5, 0.5)
    assert image.geometry.physical
    assert image.geometry.dimension == 3


@pytest.mark.parametrize(("qform", "sform"), [(1, 1), (1, 0), (0, 2), (2, 4)])
@pytest.mark.parametrize("handedness", [1, -1])
def test_oblique_3d_geometry_is_restored_bit_for_bit(medical, tmp_path, qform, sform, handedness):
    matrix = affine() @ np.diag([handedness, 1, 1, 1])
    save_nifti(tmp_path / "image.nii.gz", np.zeros((5, 4, 3), np.int16), matrix, qform, sform)
    geometry = medical.read_image([tmp_path / "image.nii.gz"]).geometry
    label = np.arange(60).reshape(3, 4, 5) % 7
    medical.write_label(label, tmp_path / "label.nii.gz", geometry)
    source, written = (nibabel.load(tmp_path / name) for name in ("image.nii.gz", "label.nii.gz"))
    assert np.array_equal(written.affine, source.affine)
    assert np.array_equal(written.get_qform(), source.get_qform())
    assert written.header.get_zooms() == source.header.get_zooms()
    assert np.array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), label)
    first, second = (sitk.ReadImage(str(tmp_path / name)) for name in ("image.nii.gz", "label.nii.gz"))
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(first, attribute)() == getattr(second, attribute)()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_2d_geometry_is_restored(tmp_path, ending):
    image = sitk.GetImageFromArray(np.ones((4, 6), np.uint8))
    image.SetSpacing((0.3, 0.45))
    image.SetOrigin((3.3, -4.4))
    image.SetDirection((0.8, -0.6, 0.6, 0.8))
    sitk.WriteImage(image, str(tmp_path / f"image{ending}"))
    reader = reader_for(ending)
    read = reader.read_image([tmp_path / f"image{ending}"])
    assert read.array.shape == (1, 1, 4, 6)
    assert read.geometry.dimension == 2
    assert read.geometry.spacing == pytest.approx((999 * 0.45, 0.45, 0.3))
    reader.write_label(np.ones((1, 4, 6), int), tmp_path / f"label{ending}", read.geometry)
    first, second = (sitk.ReadImage(str(tmp_path / f"{name}{ending}")) for name in ("image", "label"))
    assert second.GetDimension() == 2
    exact = ending.startswith(".nii")
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        expected = getattr(first, attribute)()
        assert getattr(second, attribute)() == (expected if exact else pytest.approx(expected, rel=1e-14))
    if exact:
        source, written = (nibabel.load(tmp_path / f"{name}{ending}") for name in ("image", "label"))
        assert np.array_equal(written.affine, source.affine)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_geometry_without_nifti_header_is_written_through_itk(tmp_path, ending):
    geometry = Geometry((3.0, 0.9, 0.7), True, (1.5, 2.5, 3.5), tuple(OBLIQUE.ravel()), 3)
    reader = reader_for(ending)
    reader.write_label(np.ones((2, 3, 4), np.int64), tmp_path / f"a{ending}", geometry)
    label, read = reader.read_label(tmp_path / f"a{ending}")
    assert np.array_equal(label, np.ones((2, 3, 4)))
    assert label.dtype == np.int32
    for name in ("spacing", "origin", "direction"):
        assert getattr(read, name) == pytest.approx(getattr(geometry, name), abs=1e-6)


def test_geometry_survives_json(medical, tmp_path):
    save_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.uint8), affine())
    geometry = medical.read_label(tmp_path / "a.nii.gz")[1]
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


def test_scale_factor_and_big_endian_voxels(medical, tmp_path):
    path = tmp_path / "a.nii"
    voxels = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4), nibabel.Nifti1Header(endianness=">")), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, 10], ">f4").tobytes()  # scl_slope and scl_inter in the format's definition
    path.write_bytes(bytes(content))
    assert nibabel.load(path).header.endianness == ">"
    image = medical.read_image([path])
    assert np.array_equal(image.array[0], voxels.transpose(2, 1, 0) * 0.5 + 10)
    medical.write_label(voxels, tmp_path / "b.nii", image.geometry)
    assert np.array_equal(nibabel.load(tmp_path / "b.nii").affine, nibabel.load(path).affine)


def test_one_file_per_channel_and_all_channels_in_one_file(medical, tmp_path):
    voxels = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    save_nifti(tmp_path / "both.nii.gz", voxels)
    for channel in range(2):
        save_nifti(tmp_path / f"{channel}.nii.gz", voxels[..., channel])
    together = medical.read_image([tmp_path / "both.nii.gz"])
    apart = medical.read_image([tmp_path / "0.nii.gz", tmp_path / "1.nii.gz"])
    assert np.array_equal(apart.array, voxels.transpose(3, 2, 1, 0))
    assert np.array_equal(together.array, apart.array)
    assert together.geometry.dimension == 3
    assert medical.count_channels(tmp_path / "both.nii.gz") == 2
    assert medical.count_channels(tmp_path / "0.nii.gz") == 1


def test_vector_voxels_are_channels(tmp_path):
    voxels = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=True), str(tmp_path / "a.nrrd"))
    reader = reader_for(".nrrd")
    assert np.array_equal(reader.read_image([tmp_path / "a.nrrd"]).array, np.moveaxis(voxels, -1, 0))
    assert reader.count_channels(tmp_path / "a.nrrd") == 3


@pytest.mark.parametrize(
    ("second", "matrix", "message"),
    [((4, 4, 5), np.eye(4), "shape"), ((4, 4, 4), np.diag([1, 1, 2, 1]), "spacing")],
)
def test_channels_on_different_grids_are_refused(medical, tmp_path, second, matrix, message):
    save_nifti(tmp_path / "c_0000.nii.gz", np.zeros((4, 4, 4), np.uint8))
    save_nifti(tmp_path / "c_0001.nii.gz", np.zeros(second, np.uint8), matrix)
    with pytest.raises(SamunetError, match=rf"c_0001.nii.gz has {message}"):
        medical.read_image([tmp_path / "c_0000.nii.gz", tmp_path / "c_0001.nii.gz"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_no_numbers_are_refused(medical, tmp_path, value):
    voxels = np.zeros((3, 3, 3))
    voxels[1, 2, 0] = value
    save_nifti(tmp_path / "bad.nii.gz", voxels)
    with pytest.raises(SamunetError, match=r"bad.nii.gz contains NaN or infinite"):
        medical.read_image([tmp_path / "bad.nii.gz"])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp"])
@pytest.mark.parametrize("damage", ["empty", "half", "end", "text", "missing", "folder"])
def test_damaged_files_are_named_and_the_console_stays_quiet(tmp_path, capfd, ending, damage):
    path = tmp_path / f"bad{ending}"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    if ending in (".png", ".bmp"):
        pillow.fromarray(pixels).save(path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(pixels[None]), str(path), useCompression=True)
    content = path.read_bytes()
    if damage in ("missing", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        damaged = {"empty": b"", "half": content[: len(content) // 2], "end": content[:-60], "text": b"hello " * 99}
        path.write_bytes(damaged[damage])
    reader = reader_for(ending)
    with pytest.raises(SamunetError, match=f"bad{ending}"):
        reader.read_image([path])
    with pytest.raises(SamunetError, match=f"bad{ending}"):
        reader.read_label(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_flipped_bits_in_compressed_data_are_found(tmp_path, capfd, ending):
    path = tmp_path / f"bad{ending}"
    voxels = np.random.default_rng(0).integers(0, 255, (20, 20, 20), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(SamunetError, match=rf"bad{ending}"):
        reader_for(ending).read_image([path])
    assert capfd.readouterr() == ("", "")


def test_unsuitable_nifti_files_are_refused(medical, tmp_path):
    path = tmp_path / "bad.nii.gz"
    save_nifti(path, np.zeros((2, 2, 2), np.complex64))
    with pytest.raises(SamunetError, match=r"bad.nii.gz has the NIfTI voxel type 32"):
        medical.read_image([path])
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), sheared), path)
    with pytest.raises(SamunetError, match=r"bad.nii.gz has axes that are not at right angles(.|\n)*NibabelIO"):
        medical.read_image([path])
    assert reader_for(".nii.gz", "NibabelIO").read_image([path]).geometry.direction[1] == pytest.approx(-(0.2**0.5))


def test_uncompressed_content_under_a_compressed_name(medical, tmp_path):
    save_nifti(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.uint8))
    (tmp_path / "b.nii.gz").write_bytes(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    assert medical.read_label(tmp_path / "b.nii.gz")[0].sum() == 24


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
def test_compressed_content_under_an_uncompressed_name(tmp_path, capfd, name):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    save_nifti(tmp_path / "a.nii", voxels, affine())
    content = (tmp_path / "a.nii").read_bytes()
    expected = reader_for(".nii", name).read_image([tmp_path / "a.nii"])
    (tmp_path / "b.nii").write_bytes(gzip.compress(content))
    # Two pieces one behind the other are one file, by gzip's definition.
    (tmp_path / "c.nii").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    for file in ("b.nii", "c.nii"):
        image = reader_for(".nii", name).read_image([tmp_path / file])
        assert np.array_equal(image.array, voxels.T[None])
        assert image.geometry == expected.geometry
        assert reader_for(".nii", name).count_channels(tmp_path / file) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize(
    ("spacing", "right"),
    [((1e-3, 1, 1), True), ((1, 1, 100), True), ((1, 1, 999), True), ((9e-5, 1, 1), False), ((1, 1, 101), False),
     ((1, 1, np.inf), False), ((np.nan, 1, 1), False), ((1, 1, 0), False)],
)  # fmt: skip
def test_sides_of_voxels_must_be_sane(tmp_path, name, spacing, right):
    save_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), np.diag([1.0, 1, 1, 1]))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:92] = np.array(spacing, "<f4").tobytes()  # pixdim[1:4] in the format's definition
    content[252:256] = bytes(4)  # no qform and no sform: pixdim alone counts
    (tmp_path / "a.nii").write_bytes(bytes(content))
    reader = reader_for(".nii", name)
    if right:
        assert reader.read_image([tmp_path / "a.nii"]).geometry.spacing == pytest.approx(spacing[::-1])
        return
    with pytest.raises(SamunetError, match=r"a\.nii: the voxels' sides in its header \(pixdim\).*0\.0001 to 100 mm"):
        reader.read_image([tmp_path / "a.nii"])


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
def test_a_2d_image_that_stands_upright_is_read(tmp_path, name):
    matrix = np.array([[0.0, 0, 1, 0], [0.5, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1]])
    save_nifti(tmp_path / "a.nii", np.ones((3, 4), np.uint8), matrix)
    assert reader_for(".nii", name).read_image([tmp_path / "a.nii"]).array.shape == (1, 1, 4, 3)


@pytest.mark.parametrize(("kind", "srow_x", "size"), [(nibabel.Nifti1Image, 280, 16), (nibabel.Nifti2Image, 400, 32)])
def test_axes_in_one_plane_are_refused(tmp_path, kind, srow_x, size):
    content = bytearray(kind(np.ones((2, 3, 4), np.uint8), np.eye(4)).to_bytes())
    # By the formats' definitions srow_y comes behind srow_x.
    content[srow_x + size : srow_x + 2 * size] = content[srow_x : srow_x + size]
    (tmp_path / "a.nii").write_bytes(bytes(content))
    with pytest.raises(SamunetError, match=r"a\.nii has an axis without a direction of its own"):
        reader_for(".nii", "NibabelIO").read_image([tmp_path / "a.nii"])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_quaternion_that_is_no_rotation_is_refused(tmp_path, kind):
    image = kind(np.ones((2, 3, 4), np.uint8), None)
    image.header["quatern_b"], image.header["qform_code"] = 1.5, 1
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    with pytest.raises(SamunetError, match=r"could not read .*a\.nii"):
        reader_for(".nii", "NibabelIO").read_image([tmp_path / "a.nii"])


def test_bytes_behind_the_voxels_do_not_count(medical, tmp_path):
    save_nifti(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.uint8))
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content + bytes(100)))
    assert medical.read_label(tmp_path / "a.nii.gz")[0].sum() == 24


def test_what_is_no_regular_file_is_named(medical, tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "gone.nii")
    for name, words in (("pipe", "is not a regular file"), ("link", "is a link to .*gone.nii, which does not exist")):
        with pytest.raises(SamunetError, match=rf"{name}\.nii {words}"):
            medical.read_image([tmp_path / f"{name}.nii"])


def test_float_labels(medical, tmp_path):
    voxels = np.zeros((2, 2, 2), np.float32)
    voxels[0, 0, 0] = 2
    save_nifti(tmp_path / "whole.nii.gz", voxels)
    assert medical.read_label(tmp_path / "whole.nii.gz")[0].max() == 2
    for wrong in (1.5, np.nan):
        voxels[1, 1, 1] = wrong
        save_nifti(tmp_path / "broken.nii.gz", voxels)
        with pytest.raises(SamunetError, match=rf"broken.nii.gz has label values that are not whole.*{wrong}"):
            medical.read_label(tmp_path / "broken.nii.gz")


@pytest.mark.parametrize(
    ("ending", "highest", "kind"),
    [
        (ending, highest, kind)
        for ending in (".nii.gz", ".mha", ".nrrd", ".gipl", ".png", ".tif")
        for highest, kind in ((255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "uint32"))
        if kind != "uint32" or ending not in (".png", ".gipl")
    ],
)
def test_labels_are_written_in_the_smallest_type(tmp_path, ending, highest, kind):
    geometry = Geometry((1.0, 1.0, 1.0), True, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), 2)
    label = np.array([[[0, 1], [2, highest]]])
    reader, path = reader_for(ending), tmp_path / f"a{ending}"
    reader.write_label(label, path, geometry)
    assert np.array_equal(reader.read_label(path)[0], label)
    stored = pillow.open(path) if ending == ".png" else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.asarray(stored).dtype == kind


@pytest.mark.parametrize("ending", [".png", ".gipl"])
def test_a_label_too_large_for_the_format_is_refused(tmp_path, ending):
    geometry = Geometry((1.0, 1.0, 1.0), True, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), 2)
    with pytest.raises(SamunetError, match="cannot hold the label value 65536"):
        reader_for(ending).write_label(np.array([[[0, 65536]]]), tmp_path / f"a{ending}", geometry)
    assert not list(tmp_path.iterdir())


def test_writing_a_label_that_does_not_fit_its_geometry(medical, tmp_path):
    geometry = Geometry((1.0, 1.0, 1.0), True, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), 2)
    with pytest.raises(ValueError, match="2D file"):
        medical.write_label(np.zeros((2, 3, 4), int), tmp_path / "a.nii.gz", geometry)
    with pytest.raises(ValueError, match="negative"):
        medical.write_label(np.full((1, 3, 4), -1), tmp_path / "a.nii.gz", geometry)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_intensities_of_every_type(tmp_path, ending, kind):
    highest = min(1_000_000, np.iinfo(kind).max) if "int" in kind else 1_000_000
    voxels = np.array([[[0, 1, highest]]], kind)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / f"a{ending}"))
    assert reader_for(ending).read_image([tmp_path / f"a{ending}"]).array.ravel().tolist() == [0, 1, highest]


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_2(tmp_path, name, ending):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti2Image(voxels, affine()), tmp_path / f"a{ending}")
    reader = reader_for(ending, name)
    image = reader.read_image([tmp_path / f"a{ending}"])
    assert np.array_equal(image.array[0], voxels.T)
    assert image.geometry.spacing == pytest.approx((3.3, 0.9, 0.7), rel=1e-15)
    reader.write_label(voxels.T, tmp_path / f"b{ending}", image.geometry)
    source, written = (nibabel.load(tmp_path / f"{stem}{ending}") for stem in "ab")
    assert isinstance(written, nibabel.Nifti2Image)
    assert np.array_equal(written.affine, source.affine)
    assert np.array_equal(written.get_qform(), source.get_qform())
    assert reader.count_channels(tmp_path / f"a{ending}") == 1


def test_a_nifti_header_in_other_units_is_read_in_millimetres(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([500, 600, 700, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii.gz")
    for name in ("SimpleITKIO", "NibabelIO"):
        geometry = reader_for(".nii.gz", name).read_image([tmp_path / "a.nii.gz"]).geometry
        assert geometry.spacing == pytest.approx((0.7, 0.6, 0.5))


@pytest.mark.parametrize("name", ["a.NII", "a.NII.GZ", "a.Nii.gz", "a.NRRD", "a.MHA", "a.GIPL"])
def test_upper_case_endings_are_opened(tmp_path, capfd, name):
    image = sitk.GetImageFromArray(np.ones((2, 3, 4), np.uint8))
    sitk.WriteImage(image, str(tmp_path / name.lower()))
    (tmp_path / name.lower()).rename(tmp_path / name)
    label, geometry = reader_for(name[1:]).read_label(tmp_path / name)
    assert label.sum() == 24
    reader_for(name[1:]).write_label(label, tmp_path / f"b{name[1:].lower()}", geometry)
    assert sitk.ReadImage(str(tmp_path / f"b{name[1:].lower()}")).GetSpacing() == image.GetSpacing()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", [b"2 0 3", b"two 2 3"])
def test_a_metaimage_of_senseless_size_is_refused(tmp_path, capfd, text):
    header = b"ObjectType = Image\nNDims = 3\nDimSize = %s\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n" % text
    (tmp_path / "a.mha").write_bytes(header + b"ElementDataFile = LOCAL\nabcdef")
    with pytest.raises(SamunetError, match=r"a\.mha"):
        reader_for(".mha").read_image([tmp_path / "a.mha"])
    assert capfd.readouterr() == ("", "")


def test_voxels_in_another_file_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.uint8)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.mhd").rename(tmp_path / "a.mha")
    with pytest.raises(SamunetError, match=r"keeps its voxels in another file, a\.raw"):
        reader_for(".mha").read_image([tmp_path / "a.mha"])


@pytest.mark.parametrize(("files", "got"), [(1, "1 channel,"), (2, "2 channels,")])
def test_another_number_of_channels_is_an_error_that_names_the_files(medical, tmp_path, files, got):
    paths = [tmp_path / f"c_{index:04d}.nii.gz" for index in range(files)]
    for path in paths:
        save_nifti(path, np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(SamunetError, match=rf"{paths[-1].name} ha(s|ve) {got} but channel_names in .* lists 3"):
        medical.read_image(paths, channels=3)
    assert medical.read_image(paths, channels=files).array.shape[0] == files


@pytest.mark.parametrize(
    ("moved", "what"),
    [
        (np.array([[1, 0, 0, 0], [0, 1, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]]), "origin"),
        (np.diag([-1.0, 1.0, 1.0, 1.0]), "direction"),
    ],
)
def test_channels_at_different_places(medical, tmp_path, caplog, moved, what):
    paths = [tmp_path / f"c_{index:04d}.nii.gz" for index in range(2)]
    for path, matrix in zip(paths, (np.eye(4), moved)):
        save_nifti(path, np.zeros((2, 2, 2), np.uint8), matrix)
    with pytest.raises(SamunetError, match=rf"c_0001.nii.gz has the {what}(.|\n)*tolerate_geometry=True"):
        medical.read_image(paths)
    assert not caplog.text
    image = medical.read_image(paths, tolerate_geometry=True)
    assert image.geometry == medical.read_image(paths[:1]).geometry
    assert f"c_0001.nii.gz has the {what}" in caplog.text


def test_rounded_headers_are_at_the_same_place(medical, tmp_path, caplog):
    paths = [tmp_path / f"c_{index:04d}.nii.gz" for index in range(2)]
    matrix = affine()
    for path, shift in zip(paths, (0, 5e-4)):
        matrix[0, 3] += shift
        save_nifti(path, np.zeros((2, 2, 2), np.uint8), matrix)
    medical.read_image(paths)
    assert not caplog.text


def test_complex_voxels_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2), np.complex64)), str(tmp_path / "a.nii"))
    with pytest.raises(SamunetError, match=r"a\.nii"):
        reader_for(".nii").read_image([tmp_path / "a.nii"])
