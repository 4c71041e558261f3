"""NRRD, MetaImage and GIPL, whose headers samunet parses itself: bit for bit what SimpleITK reads, and strict."""

import bz2
import gzip
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.errors import SamunetError
from samunet.imageio import border
from samunet.imageio.registry import image_reader_for, mask_ending, reader_for
from samunet.imageio.simpleitk import SimpleITKReader

READER = reader_for(".mha")
KINDS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
SHAPES = {"2D": (5, 4), "3D": (3, 5, 4), "4D": (2, 3, 5, 4)}


def random_image(kind, shape, components=1, seed=0):
    """An oblique image of random values of the whole range."""
    rng, dimension = np.random.default_rng(seed), len(shape)
    size = shape if components == 1 else (*shape, components)
    if kind.startswith("float"):
        voxels = rng.normal(scale=1000, size=size).astype(kind)
    else:
        voxels = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, size, kind, endpoint=True)
    image = sitk.GetImageFromArray(voxels, isVector=components > 1)
    direction = np.eye(dimension)
    direction[: min(dimension, 3), : min(dimension, 3)] = np.linalg.qr(rng.normal(size=(min(dimension, 3),) * 2))[0]
    image.SetDirection(direction.ravel())
    image.SetSpacing(rng.uniform(0.1, 5, dimension))
    image.SetOrigin(rng.normal(scale=300, size=dimension))
    return image


def assert_as_itk(path, image=None):
    """``path`` is read as SimpleITK reads it: every voxel, every digit of the geometry."""
    image = sitk.ReadImage(str(path)) if image is None else image
    expected = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        expected = np.moveaxis(expected, -1, 0)
    axes = min(image.GetDimension(), 3)
    expected = expected.reshape(-1, *(1,) * (3 - axes), *expected.shape[-axes:])
    voxels, geometry = READER.read_voxels(path)
    assert voxels.dtype.newbyteorder("=") == expected.dtype
    assert np.array_equal(voxels, expected)
    assert geometry.spacing[-axes:] == image.GetSpacing()[:axes][::-1]
    assert geometry.origin == image.GetOrigin()[:axes]
    size = image.GetDimension()
    assert geometry.direction == tuple(np.reshape(image.GetDirection(), (size, size))[:axes, :axes].ravel())
    assert READER.count_channels(path) == len(expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_all_that_simpleitk_writes(tmp_path, ending, kind, shape, components, packed):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(random_image(kind, SHAPES[shape], components, KINDS.index(kind)), str(path), packed)
    assert_as_itk(path)


@pytest.mark.parametrize("ending", [".gipl", ".gipl.gz"])
@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (1, 5, 4)])
def test_gipl_of_all_types(tmp_path, ending, kind, shape):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(random_image(kind, shape), str(path))
    assert_as_itk(path)
    label, geometry = np.arange(20).reshape(1, 5, 4), READER.read_voxels(path)[1]
    READER.write_label(np.resize(label, (*shape[:-2], 5, 4)[-3:] if len(shape) == 3 else (1, 5, 4)), path, geometry)
    assert_as_itk(path)


NRRD = ["type: short", "dimension: 3", "sizes: 4 3 2", "encoding: raw", "endian: little"]
PLACED = ["space directions: (0.5,0,0) (0,0,-2) (0,1.5,0)", "space origin: (1.5,-2,3)"]
VALUES = np.arange(24, dtype="<i2") - 7


def nrrd(path, *lines, data=None, without=(), end="\n"):
    own = {line.partition(":")[0] for line in lines} | set(without)
    header = ["NRRD0004", *(line for line in NRRD if line.partition(":")[0] not in own), *lines, "", ""]
    path.write_bytes(end.join(header).encode() + (VALUES.tobytes() if data is None else data))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["spacings: 0.5 0.6 2"],
        ["spacings: 0.5 0.6 2", "axis mins: 1 2 3"],
        ["spacings: 0.5 0.6 2", "axis mins: 1 2 3", "centerings: node node cell"],
        ["axis mins: 1 2 3", "axis maxs: 2 4 9"],
        ["# a comment: with a colon", "key:=value: of one's own", 'content: "x"', 'units: "mm" "mm" "mm"'],
        ["space: right-anterior-superior", *PLACED],
        ["space: left-anterior-superior", *PLACED],
        ["space: left-posterior-superior", *PLACED],
        ["space: LPS", *PLACED],
        ["space: RAS", *PLACED],
        ["space: scanner-xyz", *PLACED],
        ["space dimension: 3", *PLACED],
        ["space: LPS", PLACED[0], "space origin: none"],
        ["kinds: domain domain list"],
        ["kinds: domain vector domain", "spacings: 2 nan 3"],
        ["kinds: vector domain domain", "space dimension: 2", "space directions: none (0,1) (2,0)"],
        ["kinds: space space time"],
        ["byte skip: -1"],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_nrrd_headers_as_other_programs_write_them(tmp_path, lines, end):
    assert_as_itk(nrrd(tmp_path / "a.nrrd", *lines, end=end))


@pytest.mark.parametrize(
    ("lines", "data"),
    [
        (["encoding: gzip"], gzip.compress(VALUES.tobytes(), mtime=0)),
        (["encoding: gz"], b"".join(gzip.compress(part.tobytes(), mtime=0) for part in (VALUES[:5], VALUES[5:]))),
        (["endian: big"], VALUES.astype(">i2").tobytes()),
        (["byte skip: 5"], b"12345" + VALUES.tobytes()),
        ([], VALUES.tobytes() + b"behind"),
    ],
)
def test_nrrd_data_as_itk_reads_them(tmp_path, lines, data):
    assert_as_itk(nrrd(tmp_path / "a.nrrd", *lines, data=data))
    assert np.array_equal(READER.read_voxels(tmp_path / "a.nrrd")[0].ravel(), VALUES)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("bzip2", bz2.compress(VALUES.tobytes())), ("ascii", " ".join(map(str, VALUES)).encode() + b"\n")],
)
def test_nrrd_encodings_that_itk_lacks(tmp_path, encoding, data):
    path = nrrd(tmp_path / "a.nrrd", f"encoding: {encoding}", data=data)
    assert np.array_equal(READER.read_voxels(path)[0].ravel(), VALUES)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["type: " + "s" * 1200], "'type' in its header"),
        (["kinds: " + "d" * 1200 + " domain domain"], "kinds"),
        (["content: " + "c" * 20_000], "no field of NRRD"),
        (["dimension: 16"], "2 to 5"),
        (["dimension: 99999999999999999999"], "whole numbers"),
        (["sizes: 4 3"], "3 whole numbers"),
        (["sizes: 4 3 0"], "sizes of 1 or more"),
        (["sizes: 4 3 -2"], "sizes of 1 or more"),
        (["sizes: 60000 60000 60000"], "60000 x 60000 x 60000"),
        (["sizes: 4 3 3"], "truncated: 48 bytes of voxels where its header announces 72"),
        (["encoding: hex"], "raw, gzip, bzip2 or ascii"),
        (["endian: middle"], "little or big"),
        (["sizes: 4 3 2 "], None),
        (["spacings: 1 1 nan"], r"\(spacings\) are nan"),
        (["spacings: 1 0 1"], r"\(spacings\) are 1, 0, 1 mm"),
        (["spacings: 1 1 1e-5"], r"1e-05.* must be from 0.0001 to 100 mm"),
        (["spacings: 1 101 1"], "must be from 0.0001 to 100 mm"),
        (["space: LPS", "space directions: (1,0,0) (0,1,0) (0,0.1,1)"], "right angles"),
        (["space: LPS", "space directions: (1,0,0) (0,1,0) (0,0,0)"], r"\(space directions\) are 0, 1, 1"),
        (["space: LPS", "space directions: (1,0,0) (0,1,0) (0,0,nan)"], "space directions"),
        (["space: LPS", "space directions: (1,0) (0,1) (0,0)"], "3 numbers"),
        (["space: LPS", *PLACED[:1], "space origin: (0,0,inf)"], "not a number"),
        (["space: LPS", "space origin: (0,0)"], "space origin"),
        (["kinds: complex domain domain"], "no complex numbers"),
        (["kinds: list vector domain"], "at most one of components"),
        (["type: short", "type: uchar"], "'type' twice"),
        (["space direction: (1,0,0) (0,1,0) (0,0,1)"], "no field of NRRD"),
        (["data file: ../secret.raw"], "one file in the same folder"),
        (["data file: /etc/passwd"], "one file in the same folder"),
        (["data file: a.nrrd"], "one file in the same folder"),
        (["data file: LIST"], "one file in the same folder"),
        (["data file: slice%03d.raw 1 5 1"], "one file in the same folder"),
        (["data file: gone.raw"], "gone.raw, which is not beside it"),
        (["line skip: 1"], "without line skip"),
        (["encoding: ascii"], "damaged|truncated"),
    ],
)
def test_nrrd_headers_that_are_refused(tmp_path, lines, message):
    (tmp_path.parent / "secret.raw").write_bytes(VALUES.tobytes())
    path = nrrd(tmp_path / "a.nrrd", *lines)
    if message is None:
        READER.read_image([path])
        return
    with pytest.raises(SamunetError, match=rf"a\.nrrd(.|\n)*({message})") as error:
        READER.read_image([path])
    assert len(error.value.message) < 600


def test_nrrd_data_in_another_file(tmp_path):
    (tmp_path / "b.raw").write_bytes(b"head" + VALUES.tobytes())
    path = nrrd(tmp_path / "a.nhdr", "data file: b.raw", "byte skip: 4", data=b"")
    assert_as_itk(path)
    (tmp_path / "c.nrrd").write_bytes(SimpleITKReader().in_one_file(path))
    assert np.array_equal(READER.read_voxels(tmp_path / "c.nrrd")[0].ravel(), VALUES)


META = ["ObjectType = Image", "NDims = 3", "DimSize = 4 3 2", "ElementType = MET_SHORT"]


def meta(path, *lines, data=None, where="LOCAL"):
    own = {line.partition(" ")[0] for line in lines}
    header = [*(line for line in META if line.partition(" ")[0] not in own), *lines, f"ElementDataFile = {where}", ""]
    path.write_bytes("\n".join(header).encode() + (VALUES.tobytes() if data is None else data))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["Comment = hello", "0008|0060 = CT", "AnatomicalOrientation = RAI"],
        ["ElementSize = 1 2 3"],
        ["ElementSpacing = 4 5 6", "ElementSize = 1 2 3"],
        ["Rotation = 0 1 0 -1 0 0 0 0 1", "Position = 1 2 3"],
        ["Orientation = 0 1 0 -1 0 0 0 0 1", "Origin = 1 2 3"],
        ["TransformMatrix = 0 0 1 1 0 0 0 1 0", "Offset = 1.25 -2 3e2", "CenterOfRotation = 0 0 0"],
        ["ElementToIntensityFunctionSlope = 2"],
        ["BinaryDataByteOrderMSB = True"],
        ["ElementByteOrderMSB = True"],
        ["HeaderSize = -1"],
        ["NDims = 2", "DimSize = 4 3", "ElementNumberOfChannels = 2"],
        ["NDims = 2", "DimSize = 4 3", "ElementType = MET_ULONG"],
        ["NDims = 2", "DimSize = 2 3", "ElementType = MET_ULONG_LONG"],
    ],
)
def test_metaimage_headers_as_other_programs_write_them(tmp_path, lines):
    assert_as_itk(meta(tmp_path / "a.mha", *lines))


@pytest.mark.parametrize("packed", [zlib.compress, gzip.compress])
def test_packed_and_separate_voxels_of_a_metaimage(tmp_path, packed):
    data = packed(VALUES.tobytes())
    size = f"CompressedDataSize = {len(data)}"
    assert_as_itk(meta(tmp_path / "a.mha", "CompressedData = True", size, data=data))
    (tmp_path / "a.zraw").write_bytes(data)
    path = meta(tmp_path / "b.mhd", "CompressedData = True", size, where="a.zraw", data=b"")
    assert_as_itk(path)
    (tmp_path / "c.mha").write_bytes(SimpleITKReader().in_one_file(path))
    assert_as_itk(tmp_path / "c.mha", sitk.ReadImage(str(path)))


def test_a_separate_file_with_bytes_before_the_voxels(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"head" + VALUES.tobytes())
    for skip in (4, -1):
        path = meta(tmp_path / "b.mhd", f"HeaderSize = {skip}", where="a.raw", data=b"")
        assert_as_itk(path)
        (tmp_path / "c.mha").write_bytes(SimpleITKReader().in_one_file(path))
        assert np.array_equal(READER.read_voxels(tmp_path / "c.mha")[0].ravel(), VALUES)


def test_a_metaimage_as_text(tmp_path):
    path = meta(tmp_path / "a.mha", "BinaryData = False", data=" ".join(map(str, VALUES)).encode())
    assert np.array_equal(READER.read_voxels(path)[0].ravel(), VALUES)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SamunetError, match=r"a\.mha is truncated: 2\d values where its header announces 24"):
        READER.read_voxels(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["NDims = 4000000000"], "2 to 5"),
        (["NDims = 99999999999999999999999"], "whole numbers"),
        (["DimSize = 4 3"], "3 whole numbers"),
        (["DimSize = 40000 30000 20000"], "40000 x 30000 x 20000"),
        (["ElementNumberOfChannels = 100000"], "1 to 1000"),
        (["ElementType = MET_FLOAT_MATRIX"], "MET_ and one of"),
        (["Comment = " + "x" * 20_000], "not a MetaImage"),
        (["ElementSpacing = 1 1 0"], r"\(ElementSpacing\) are 0, 1, 1"),
        (["ElementSpacing = 1 nan 1"], "ElementSpacing"),
        (["ElementSpacing = 1 1e5 1"], "0.0001 to 100 mm"),
        (["TransformMatrix = 1 0 0 0 1 0 0 1 1"], "right angles(.|\n)*TransformMatrix"),
        (["TransformMatrix = 0 0 0 0 0 0 0 0 0"], "right angles"),
        (["Offset = 1 2 3", "Origin = 4 5 6"], "Offset and Origin in its header differ"),
        (["HeaderSize = 10"], "HeaderSize"),
        (["HeaderSize = -7"], "HeaderSize"),
        (["CompressedData = True"], "damaged or truncated"),
        (["DimSize = 4 3 3"], "truncated: 48 bytes"),
    ],
)
def test_metaimage_headers_that_are_refused(tmp_path, lines, message):
    path = meta(tmp_path / "a.mha", *lines)
    with pytest.raises(SamunetError, match=rf"a\.mha(.|\n)*({message})"):
        READER.read_image([path])


@pytest.mark.parametrize("where", ["../a.raw", "/etc/hostname", "LIST", "a%03d.raw 1 3 1", "..", "b.mhd", "C:\\a.raw"])
def test_a_metaimage_reads_no_file_elsewhere(tmp_path, where):
    (tmp_path.parent / "a.raw").write_bytes(VALUES.tobytes())
    with pytest.raises(SamunetError, match=r"b\.mhd: 'ElementDataFile'.* the name of one file in the same folder"):
        READER.read_image([meta(tmp_path / "b.mhd", where=where, data=b"")])


def test_a_missing_raw_file_is_named(tmp_path):
    with pytest.raises(SamunetError, match=r"b\.mhd keeps its voxels in another file, b\.raw, which is not beside"):
        READER.read_image([meta(tmp_path / "b.mhd", where="b.raw", data=b"")])


@pytest.mark.parametrize(
    ("at", "content", "message"),
    [
        (0, struct.pack(">4H", 4, 0, 2, 1), "two to four sizes"),
        (0, struct.pack(">4H", 60000, 60000, 60000, 1), "60000 x 60000"),
        (0, struct.pack(">4H", 4, 3, 200, 1), "truncated: 24 bytes of voxels where its header announces 2400"),
        (8, struct.pack(">H", 31), "image_type"),
        (10, struct.pack(">f", float("nan")), "pixdim"),
        (10, struct.pack(">f", 1e6), "0.0001 to 100 mm"),
        (204, struct.pack(">d", float("inf")), "not a number"),
        (252, b"abcd", "not a GIPL image"),
    ],
)
def test_gipl_headers_that_are_refused(tmp_path, at, content, message):
    path = tmp_path / "a.gipl"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(path))
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(bytes(data))
    with pytest.raises(SamunetError, match=rf"a\.gipl(.|\n)*({message})"):
        READER.read_image([path])


ZEROS = 1 << 26  # bytes that a few kilobytes unpack to


@pytest.mark.parametrize("ending", [".nii.gz", ".gipl.gz", ".mha", ".nrrd"])
def test_no_more_is_unpacked_than_the_header_announces(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(path), useCompression=True)
    if ending.endswith(".gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(ZEROS)))
    elif ending == ".mha":
        header = path.read_bytes().partition(b"LOCAL\n")[0] + b"LOCAL\n"
        path.write_bytes(header + zlib.compress(bytes(24 + ZEROS)))
    else:
        path.write_bytes(path.read_bytes().partition(b"\n\n")[0] + b"\n\n" + gzip.compress(bytes(24 + ZEROS)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SamunetError, match=rf"a{ending} holds more than its header announces: 24 bytes"):
        READER.read_image([path])


@pytest.mark.parametrize("ending", [".nii.gz", ".gipl.gz", ".mha", ".nrrd"])
def test_an_image_beyond_the_memory_is_refused_before_it_is_unpacked(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 30, 40), np.uint8)), str(path), useCompression=True)
    monkeypatch.setattr(border, "_memory", lambda: 2 * 30 * 40 * 16)
    READER.read_image([path])
    monkeypatch.setattr(border, "_memory", lambda: 2 * 30 * 40 * 16 - 1)
    with pytest.raises(SamunetError, match=rf"a{ending} announces 40 x 30 x 2 = 2,400 values.*up to 2,399 values"):
        READER.read_image([path])


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".gipl", ".png", ".tif", ".jpg"])
def test_git_lfs_pointers_are_called_that(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(SamunetError, match=rf"a\{ending} is a git-LFS pointer(.|\n)*git lfs pull"):
        image_reader_for(path, READER).read_image([path])


def test_masks_of_headers_are_whole_files():
    assert [mask_ending(f"a{ending}") for ending in (".mhd", ".MHD", ".nhdr")] == [".mha", ".mha", ".nrrd"]
    with pytest.raises(SamunetError, match=r"make_dataset.* makes a dataset of such files; or save them as .mha"):
        reader_for(".mhd")
