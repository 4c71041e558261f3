"""Pictures: what each way to store colours, palettes and transparency becomes, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image as pillow

from samunet.dataset.cases import Case
from samunet.dataset.description import description_from_json
from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.imageio.registry import reader_for
from samunet.preprocessing.case import read_case

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY16 = RANDOM.integers(0, 65536, (5, 7)).astype(np.uint16)
BILEVEL = GREY > 127
OPAQUE, HALF = np.full_like(GREY, 255), np.where(BILEVEL, 255, 9).astype(np.uint8)


@pytest.fixture
def reader():
    return reader_for(".png")


def palette(indices, colours):
    picture = pillow.fromarray(indices)
    picture.putpalette(np.ravel(colours).tolist())
    return picture


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, width, depth, colour_type, row, *extra):
    """One row of pixels in a PNG of a kind that Pillow does not write (https://www.w3.org/TR/png)."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    data = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))


INDEXED = palette(BILEVEL.astype(np.uint8), [1, 2, 3, 9, 8, 7])
GREYS = np.stack([GREY] * 3, axis=-1)
CASES = {
    # picture, channels expected by the dataset, channels (y, x) in the array
    "grey": (pillow.fromarray(GREY), None, [GREY]),
    "grey, 1": (pillow.fromarray(GREY), 1, [GREY]),
    "grey, 3": (pillow.fromarray(GREY), 3, [GREY] * 3),
    "grey 16 bit": (pillow.fromarray(GREY16), 1, [GREY16]),
    "grey 16 bit, 3": (pillow.fromarray(GREY16), 3, [GREY16] * 3),
    "one bit": (pillow.fromarray(BILEVEL), 1, [BILEVEL]),
    "RGB": (pillow.fromarray(COLOUR), None, [*COLOUR.transpose(2, 0, 1)]),
    "RGB, 3": (pillow.fromarray(COLOUR), 3, [*COLOUR.transpose(2, 0, 1)]),
    "grey as RGB": (pillow.fromarray(GREYS), None, [GREY] * 3),
    "grey as RGB, 1": (pillow.fromarray(GREYS), 1, [GREY]),
    "grey as RGB, 3": (pillow.fromarray(GREYS), 3, [GREY] * 3),
    "palette, 3": (INDEXED, 3, [np.where(BILEVEL, *pair) for pair in ((9, 1), (8, 2), (7, 3))]),
    "palette of greys, 1": (palette(BILEVEL.astype(np.uint8), [2, 2, 2, 9, 9, 9]), 1, [np.where(BILEVEL, 9, 2)]),
    "opaque RGBA": (pillow.fromarray(np.dstack([COLOUR, OPAQUE])), 3, [*COLOUR.transpose(2, 0, 1)]),
    "opaque RGBA of greys, 1": (pillow.fromarray(np.dstack([GREYS, OPAQUE])), 1, [GREY]),
    "opaque RGBA, as it is": (pillow.fromarray(np.dstack([COLOUR, OPAQUE])), None, [*COLOUR.transpose(2, 0, 1)]),
    "RGBA, 4": (pillow.fromarray(np.dstack([COLOUR, HALF])), 4, [*COLOUR.transpose(2, 0, 1), HALF]),
    "opaque LA": (pillow.fromarray(np.dstack([GREY, OPAQUE]), "LA"), 1, [GREY]),
    "opaque LA, 3": (pillow.fromarray(np.dstack([GREY, OPAQUE]), "LA"), 3, [GREY] * 3),
    "LA, 2": (pillow.fromarray(np.dstack([GREY, HALF]), "LA"), 2, [GREY, HALF]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pictures_become_the_channels_that_are_expected(reader, tmp_path, case):
    picture, channels, expected = CASES[case]
    picture.save(tmp_path / "a.png")
    image = reader.read_image([tmp_path / "a.png"], channels=channels)
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array, np.stack(expected)[:, None])
    assert image.geometry.spacing == (1.0, 1.0, 1.0)
    assert not image.geometry.physical


REFUSED = {
    "colour, 1": (pillow.fromarray(COLOUR), 1, r"a.png has 3 channels, but channel_names .* lists 1"),
    "grey, 2": (pillow.fromarray(GREY), 2, "a.png has 1 channel, but channel_names .* lists 2"),
    "RGB, 4": (pillow.fromarray(COLOUR), 4, "a.png has 3 channels, but channel_names .* lists 4"),
    "transparent": (pillow.fromarray(np.dstack([COLOUR, HALF])), 3, r"a.png has an alpha channel(.|\n)*'RGB'"),
    "transparent, as it is": (pillow.fromarray(np.dstack([COLOUR, HALF])), None, "alpha channel"),
    "transparent grey": (pillow.fromarray(np.dstack([GREY, HALF]), "LA"), 1, r"alpha channel(.|\n)*'L'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pictures_that_would_lose_something_are_refused(reader, tmp_path, case):
    picture, channels, message = REFUSED[case]
    picture.save(tmp_path / "a.png")
    with pytest.raises(SamunetError, match=message):
        reader.read_image([tmp_path / "a.png"], channels=channels)


def test_two_files_of_greys_stored_as_colour(reader, tmp_path):
    pillow.fromarray(GREYS).save(tmp_path / "a_0000.png")
    pillow.fromarray(GREY).save(tmp_path / "a_0001.png")
    files = [tmp_path / "a_0000.png", tmp_path / "a_0001.png"]
    assert np.array_equal(reader.read_image(files, channels=2).array[:, 0], [GREY, GREY])
    assert reader.read_image(files, channels=4).array.shape[0] == 4
    with pytest.raises(SamunetError, match=r"a_0000.png and a_0001.png have 4 channels, .* lists 3"):
        reader.read_image(files, channels=3)


def test_channels_are_counted_from_the_header(reader, tmp_path):
    for name, count in (("grey", 1), ("RGB", 3), ("palette, 3", 3), ("opaque RGBA", 3), ("opaque LA", 1)):
        CASES[name][0].save(tmp_path / "a.png")
        assert reader.count_channels(tmp_path / "a.png") == count


@pytest.mark.parametrize(
    ("kind", "row", "transparent", "opaque"),
    [(0, bytes([5, 6, 7]), b"\0\5", b"\0\4"), (2, bytes(range(9)), b"\0\3\0\4\0\5", b"\0\3\0\4\0\6")],
)
def test_a_colour_declared_transparent(reader, tmp_path, kind, row, transparent, opaque):
    png(tmp_path / "a.png", 3, 8, kind, row, chunk(b"tRNS", transparent))
    with pytest.raises(SamunetError, match=r"alpha channel that is not opaque in 33.3%"):
        reader.read_image([tmp_path / "a.png"])
    png(tmp_path / "a.png", 3, 8, kind, row, chunk(b"tRNS", opaque))
    assert reader.read_image([tmp_path / "a.png"]).array.shape == (1 if kind == 0 else 3, 1, 1, 3)


def test_a_palette_with_transparency(reader, tmp_path):
    colours = chunk(b"PLTE", bytes([1, 2, 3, 4, 5, 6]))
    png(tmp_path / "a.png", 2, 8, 3, bytes([0, 1]), colours, chunk(b"tRNS", b"\xff\xff"))
    assert np.array_equal(reader.read_image([tmp_path / "a.png"]).array[:, 0, 0], [[1, 4], [2, 5], [3, 6]])
    png(tmp_path / "a.png", 2, 8, 3, bytes([0, 1]), colours, chunk(b"tRNS", b"\0\xff"))
    with pytest.raises(SamunetError, match=r"alpha channel that is not opaque in 50.0%"):
        reader.read_image([tmp_path / "a.png"])
    assert reader.read_label(tmp_path / "a.png")[0].ravel().tolist() == [0, 1]


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_sixteen_bit_colour_is_refused_instead_of_cut_to_eight(reader, tmp_path, kind):
    png(tmp_path / "a.png", 2, 16, kind, bytes(2 * 2 * {2: 3, 4: 2, 6: 4}[kind]))
    with pytest.raises(SamunetError, match=r"a.png has 16 bits per colour"):
        reader.read_image([tmp_path / "a.png"])


@pytest.mark.parametrize(
    ("depth", "row", "values"), [(1, 0b01000000, [0, 1]), (2, 0b00011011, [0, 1, 2, 3]), (4, 0x0F, [0, 15])]
)
def test_labels_of_few_bits_keep_their_values(reader, tmp_path, depth, row, values):
    png(tmp_path / "a.png", len(values), depth, 0, bytes([row]))
    assert reader.read_label(tmp_path / "a.png")[0].ravel().tolist() == values


@pytest.mark.parametrize("kind", ["grey", "palette", "greys as RGB", "opaque RGBA", "opaque LA", "one bit"])
def test_labels_in_every_disguise(reader, tmp_path, kind):
    values = np.array([[0, 1], [1, 0]], np.uint8)
    opaque = np.full_like(values, 255)
    picture = {
        "grey": pillow.fromarray(values),
        "palette": palette(values, [0, 0, 0, 255, 10, 20]),
        "greys as RGB": pillow.fromarray(np.dstack([values] * 3)),
        "opaque RGBA": pillow.fromarray(np.dstack([*[values] * 3, opaque])),
        "opaque LA": pillow.fromarray(np.dstack([values, opaque]), "LA"),
        "one bit": pillow.fromarray(values.astype(bool)),
    }[kind]
    picture.save(tmp_path / "a.png")
    label, geometry = reader.read_label(tmp_path / "a.png")
    assert np.array_equal(label, values[None])
    assert label.dtype == np.int32
    assert not geometry.physical


def test_colour_labels_are_refused(reader, tmp_path):
    pillow.fromarray(COLOUR).save(tmp_path / "a.png")
    with pytest.raises(SamunetError, match=r"a.png is a colour picture; a label must be grey or have a palette"):
        reader.read_label(tmp_path / "a.png")


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_an_image_but_never_a_label(reader, tmp_path, ending):
    pillow.fromarray(GREY).save(tmp_path / f"a{ending}", "JPEG")
    assert reader.read_image([tmp_path / f"a{ending}"], channels=3).array.shape == (3, 1, 5, 7)
    with pytest.raises(SamunetError, match=r"a\..* is a JPEG, which changes label values"):
        reader.read_label(tmp_path / f"a{ending}")
    geometry = reader.read_image([tmp_path / f"a{ending}"]).geometry
    with pytest.raises(SamunetError, match=r"masks cannot be written"):
        reader.write_label(np.zeros((1, 5, 7), int), tmp_path / f"b{ending}", geometry)
    assert not (tmp_path / f"b{ending}").exists()


def test_a_jpeg_under_another_name_is_no_label_either(reader, tmp_path):
    pillow.fromarray(GREY).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(SamunetError, match=r"a.png is a JPEG"):
        reader.read_label(tmp_path / "a.png")


def test_a_truncated_jpeg_is_refused(reader, tmp_path):
    pillow.fromarray(np.tile(COLOUR, (20, 20, 1))).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(SamunetError, match=r"a.jpg: .*truncated"):
        reader.read_image([tmp_path / "a.jpg"])


def save_turned(path, pixels, orientation):
    exif = pillow.Exif()
    exif[0x0112] = orientation
    pillow.fromarray(pixels).save(path, exif=exif)


# What a viewer shows of the stored pixels, by the EXIF standard: 6 needs a quarter to the right, 8 to the left.
SHOWN = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_turned_photograph_is_read_as_it_is_shown(reader, tmp_path, caplog, orientation):
    save_turned(tmp_path / "a.png", COLOUR, orientation)
    image = reader.read_image([tmp_path / "a.png"])
    shown = SHOWN[orientation](COLOUR)
    assert np.array_equal(image.array[:, 0], np.moveaxis(shown, -1, 0))
    assert ("photographs that are stored turned (EXIF)" in caplog.text) == (orientation != 1)
    # The mask has the grid of what is shown, and is read back so.
    mask = np.arange(shown[..., 0].size).reshape(1, *shown.shape[:2]) % 3
    reader.write_label(mask, tmp_path / "m.png", image.geometry)
    assert np.array_equal(np.asarray(pillow.open(tmp_path / "m.png")), mask[0])
    assert np.array_equal(reader.read_label(tmp_path / "m.png")[0], mask)


def test_a_mask_of_the_stored_pixels_does_not_fit_a_turned_photograph(tmp_path):
    save_turned(tmp_path / "a_0000.jpg", COLOUR, 6)
    pillow.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png")
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "a": 1}}
    description = description_from_json(content | {"file_ending": ".png"}, "")
    case = Case("a", (tmp_path / "a_0000.jpg",), tmp_path / "a.png")
    with pytest.raises(SamunetError, match=r"a.png has shape \(1, 5, 7\) .* \(1, 7, 5\)") as caught:
        read_case(case, description)
    assert "stored turned (EXIF)" in caught.value.hint
    pillow.fromarray(np.zeros((7, 5), np.uint8)).save(tmp_path / "a.png")
    assert read_case(case, description)[1].shape == (1, 7, 5)


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", ".jpg")])
def test_colours_for_printing_are_refused(reader, tmp_path, mode, ending):
    pillow.new(mode, (4, 4)).save(tmp_path / f"a{ending}")
    with pytest.raises(SamunetError, match=r"colour mode CMYK"):
        reader.read_image([tmp_path / f"a{ending}"])


@pytest.mark.parametrize(("mode", "expected"), [("1", 1), ("L", 1), ("P", 3), ("RGB", 3)])
def test_bmp(tmp_path, mode, expected):
    picture = pillow.fromarray(COLOUR).convert(mode)
    picture.save(tmp_path / "a.bmp")
    image = reader_for(".bmp").read_image([tmp_path / "a.bmp"])
    pixels = np.asarray(picture.convert("RGB") if mode == "P" else picture).reshape(5, 7, -1)
    assert image.array.shape[0] == expected
    assert np.array_equal(image.array[:, 0], pixels.transpose(2, 0, 1))
    reader_for(".bmp").write_label(np.ones((1, 5, 7), int), tmp_path / "b.bmp", image.geometry)
    assert reader_for(".bmp").read_label(tmp_path / "b.bmp")[0].sum() == 35


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_a_picture_cannot_hold_the_mask_of_a_volume(tmp_path, ending):
    file, geometry = tmp_path / f"a{ending}", Geometry((3.0, 1.0, 1.0), True, (0.0,) * 3, (1.0,) * 9, 3)
    for write in (
        lambda: reader_for(ending).check_mask(file, geometry),
        lambda: reader_for(ending).write_label(np.ones((4, 5, 7), int), file, geometry),
    ):
        with pytest.raises(SamunetError, match=f"mask of a volume cannot be written as {ending}") as caught:
            write()
        assert ".nii.gz" in caught.value.hint
    assert not list(tmp_path.iterdir())
    for able in (".tif", ".nii.gz"):
        reader_for(able).check_mask(tmp_path / f"a{able}", geometry)
