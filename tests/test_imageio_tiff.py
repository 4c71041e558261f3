"""TIFF: stacks and pictures, spacing in a JSON file beside them, and what cannot be decoded."""

import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as pillow

from samunet.errors import SamunetError
from samunet.imageio import border, tiff
from samunet.imageio.registry import reader_for

RANDOM = np.random.default_rng(0)
VOLUME = RANDOM.integers(0, 60000, (4, 5, 6)).astype(np.uint16)
COLOUR = RANDOM.integers(0, 256, (5, 6, 3), dtype=np.uint8)


@pytest.fixture
def reader():
    return reader_for(".tif")


@pytest.fixture
def as_pictures():
    return reader_for(".tif", "NaturalImage2DIO")


def spacing_beside(path, spacing):
    path.write_text(json.dumps({"spacing": spacing}))


@pytest.mark.parametrize("name", ["case_0000", "case"])
@pytest.mark.parametrize("ending", [".tif", ".tiff", ".TIF"])
def test_a_volume_and_its_mask_keep_the_spacing(reader, tmp_path, name, ending):
    path, mask = tmp_path / f"case_0000{ending}", tmp_path / f"mask{ending}"
    tifffile.imwrite(path, VOLUME, photometric="minisblack")
    spacing_beside(tmp_path / f"{name}.json", [2, 0.5, 0.25])
    image = reader.read_image([path], channels=1)
    assert np.array_equal(image.array[0], VOLUME)
    assert image.geometry.spacing == (2.0, 0.5, 0.25)
    assert image.geometry.physical
    assert image.geometry.dimension == 3
    reader.write_label(VOLUME % 3, mask, image.geometry)
    label, geometry = reader.read_label(mask)
    assert np.array_equal(label, VOLUME % 3)
    assert geometry == image.geometry
    assert tifffile.imread(mask).dtype == np.uint8
    assert np.array_equal(tifffile.imread(mask), VOLUME % 3)


def test_a_volume_without_spacing_is_read_with_one_warning(reader, tmp_path, caplog):
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", VOLUME, photometric="minisblack")
        geometry = reader.read_image([tmp_path / f"{name}.tif"]).geometry
        assert geometry.spacing == (1.0, 1.0, 1.0)
        assert not geometry.physical
    assert caplog.text.count("without spacing") == 1
    reader.write_label(VOLUME, tmp_path / "m.tif", geometry)
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize(
    ("spacing", "message"),
    [([1, 2], "three numbers"), ("1 1 1", "three numbers"), ([1, 2, None], "three numbers"), ([1, 0, 1], "to 100 mm")],
)
def test_a_senseless_spacing_is_refused(reader, tmp_path, spacing, message):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
    spacing_beside(tmp_path / "a.json", spacing)
    with pytest.raises(SamunetError, match=rf"a.json(.|\n)*{message}"):
        reader.read_image([tmp_path / "a.tif"])


def test_another_json_file_of_that_name_is_left_alone(reader, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
    (tmp_path / "a.json").write_text('{"shapes": []}')
    geometry = reader.read_image([tmp_path / "a.tif"]).geometry
    assert not geometry.physical
    spacing_beside(tmp_path / "b.json", [1, 2, 3])
    tifffile.imwrite(tmp_path / "b.tif", VOLUME, photometric="minisblack")
    stated = reader.read_image([tmp_path / "b.tif"]).geometry
    with pytest.raises(SamunetError, match=r"a.json is in the way"):
        reader.write_label(VOLUME, tmp_path / "a.tif", stated)
    assert (tmp_path / "a.json").read_text() == '{"shapes": []}'
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), VOLUME)


def test_a_spacing_of_an_earlier_mask_does_not_stay(reader, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
    spacing_beside(tmp_path / "m.json", [1, 2, 3])
    reader.write_label(VOLUME, tmp_path / "m.tif", reader.read_image([tmp_path / "a.tif"]).geometry)
    assert reader.read_label(tmp_path / "m.tif")[1].spacing == (1.0, 1.0, 1.0)


BANDS = COLOUR.transpose(2, 0, 1)[:, None]
RGB = {"photometric": "rgb"}
PLANAR = {**RGB, "planarconfig": "separate"}
OPAQUE = np.dstack([COLOUR, np.full((5, 6), 255, np.uint8)])
FOUR = np.dstack([COLOUR, COLOUR[..., 0]])
TWO = np.stack([VOLUME, VOLUME + 1])
WRITTEN = {
    # array, options of tifffile, channels that are expected, channels (z, y, x)
    "picture": (VOLUME[0], {}, 1, VOLUME[:1][None]),
    "picture, 3": (VOLUME[0], {}, 3, np.stack([VOLUME[:1]] * 3)),
    "float picture": (VOLUME[0] / np.float32(2), {}, 1, VOLUME[:1][None] / 2),
    "one bit": (VOLUME[0] > 30000, {}, 1, VOLUME[:1][None] > 30000),
    "RGB": (COLOUR, RGB, 3, BANDS),
    "RGB of 16 bit": (COLOUR.astype(np.uint16) * 200, RGB, 3, BANDS * 200.0),
    "planar RGB": (COLOUR.transpose(2, 0, 1), PLANAR, 3, BANDS),
    "greys as RGB": (np.dstack([COLOUR[..., 0]] * 3), RGB, 1, COLOUR[None, None, ..., 0]),
    "opaque RGBA": (OPAQUE, {**RGB, "extrasamples": ["unassalpha"]}, 3, BANDS),
    "four channels": (FOUR, {**RGB, "extrasamples": ["unspecified"]}, 4, FOUR.transpose(2, 0, 1)[:, None]),
    "BigTIFF": (VOLUME, {"bigtiff": True}, 1, VOLUME[None]),
    "big-endian": (VOLUME, {"byteorder": ">"}, 1, VOLUME[None]),
    "compressed": (VOLUME, {"compression": "zlib", "predictor": True}, 1, VOLUME[None]),
    "tiles": (VOLUME, {"tile": (16, 16)}, 1, VOLUME[None]),
    "plain pages": (VOLUME, {"metadata": None}, 1, VOLUME[None]),
    "named axes": (VOLUME, {"metadata": {"axes": "ZYX"}}, 1, VOLUME[None]),
    "ImageJ": (VOLUME, {"imagej": True, "metadata": {"axes": "ZYX"}}, 1, VOLUME[None]),
    "ImageJ, two channels": (TWO.swapaxes(0, 1), {"imagej": True}, 2, TWO),
    "OME": (VOLUME, {"ome": True, "metadata": {"axes": "ZYX"}}, 1, VOLUME[None]),
    "stack of RGB": (np.stack([COLOUR] * 4), RGB, 3, np.stack([COLOUR] * 4).transpose(3, 0, 1, 2)),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_kind_of_file(reader, tmp_path, kind):
    array, options, channels, expected = WRITTEN[kind]
    tifffile.imwrite(tmp_path / "a.tif", array, **{"photometric": "minisblack", **options})
    image = reader.read_image([tmp_path / "a.tif"], channels=channels)
    assert np.array_equal(image.array, expected)
    assert image.geometry.dimension == (2 if expected.shape[1] == 1 else 3)
    if "3" not in kind and "greys" not in kind:
        assert reader.count_channels(tmp_path / "a.tif") == channels


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_compressions_of_pillow(reader, tmp_path, compression):
    pages = [pillow.fromarray(page) for page in VOLUME]
    if compression == "jpeg":
        pages = [pillow.fromarray((page >> 8).astype(np.uint8)) for page in VOLUME]
    pages[0].save(tmp_path / "a.tif", compression=compression, save_all=True, append_images=pages[1:])
    got = reader.read_image([tmp_path / "a.tif"]).array[0]
    if compression == "jpeg":
        assert np.abs(got - (VOLUME >> 8)).max() < 60
    else:
        assert np.array_equal(got, VOLUME)


def test_a_compression_that_nothing_here_decodes_is_named(reader, tmp_path):
    pillow.fromarray(VOLUME[0] > 9).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    entry = content.index(np.array([259, 3], "<u2").tobytes())  # tag of the compression, a single short
    content[entry + 8 : entry + 10] = np.array([34712], "<u2").tobytes()  # JPEG 2000
    (tmp_path / "a.tif").write_bytes(bytes(content))
    with pytest.raises(SamunetError, match=r"a.tif has a compression \(JPEG2000\) that cannot be read(.|\n)*zlib"):
        reader.read_image([tmp_path / "a.tif"])


def test_a_palette_is_colour_in_an_image_and_index_in_a_label(reader, as_pictures, tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = pillow.fromarray(indices)
    picture.putpalette([0, 0, 0, 255, 10, 20, 30, 255, 40])
    picture.save(tmp_path / "a.tif")
    for each in (reader, as_pictures):
        assert np.array_equal(each.read_label(tmp_path / "a.tif")[0], indices[None])
        assert np.array_equal(each.read_image([tmp_path / "a.tif"]).array[:, 0, 0, 1], [255, 10, 20])
        assert each.count_channels(tmp_path / "a.tif") == 3


def test_transparency_and_colour_are_refused(reader, as_pictures, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([COLOUR, COLOUR[..., 0]]), photometric="rgb", extrasamples=[2])
    tifffile.imwrite(tmp_path / "b.tif", COLOUR, photometric="rgb")
    for each in (reader, as_pictures):
        with pytest.raises(SamunetError, match=r"a.tif has an alpha channel"):
            each.read_image([tmp_path / "a.tif"])
        with pytest.raises(SamunetError, match=r"b.tif"):
            each.read_label(tmp_path / "b.tif")
        with pytest.raises(SamunetError, match=r"b.tif has 3 channels, .* lists 1"):
            each.read_image([tmp_path / "b.tif"], channels=1)


def test_a_grey_volume_is_not_repeated_for_colours(reader, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
    with pytest.raises(SamunetError, match=r"a.tif has 1 channel, .* lists 3"):
        reader.read_image([tmp_path / "a.tif"], channels=3)


def test_pictures_as_pictures(as_pictures, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME[0])
    spacing_beside(tmp_path / "a.json", [1, 2, 3])
    image = as_pictures.read_image([tmp_path / "a.tif"])
    assert np.array_equal(image.array, VOLUME[:1][None])
    assert not image.geometry.physical
    as_pictures.write_label(VOLUME[:1], tmp_path / "b.tif", image.geometry)
    assert np.array_equal(as_pictures.read_label(tmp_path / "b.tif")[0], VOLUME[:1])
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack")
    with pytest.raises(SamunetError, match=r"a.tif is a stack of 4 pictures(.|\n)*Tiff3DIO"):
        as_pictures.read_image([tmp_path / "a.tif"])


def test_several_images_and_too_many_axes_are_refused(reader, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(VOLUME[0])
        writer.write(VOLUME[0, :3])
    with pytest.raises(SamunetError, match=r"a.tif holds 2 images"):
        reader.read_image([tmp_path / "a.tif"])
    tifffile.imwrite(tmp_path / "b.tif", np.stack([VOLUME] * 2), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(SamunetError, match=r"b.tif has axes TZYX"):
        reader.read_image([tmp_path / "b.tif"])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("damage", ["empty", "text", "missing", "folder", *(f"cut {tenth}" for tenth in range(1, 10))])
def test_damaged_files_are_named_and_the_console_stays_quiet(reader, tmp_path, capfd, compression, damage):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, np.tile(VOLUME, (1, 8, 8)), photometric="minisblack", compression=compression)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        cut = content[: len(content) * int(damage[4:]) // 10] if damage.startswith("cut") else b""
        path.write_bytes(b"hello " * 99 if damage == "text" else cut)
    with pytest.raises(SamunetError, match=r"bad\.tif"):
        reader.read_image([path])
    with pytest.raises(SamunetError, match=r"bad\.tif"):
        reader.read_label(path)
    assert capfd.readouterr() == ("", "")


def test_pages_of_unnamed_kind_are_channels_only_where_several_are_wanted(reader, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, imagej=True)
    assert reader.read_image([tmp_path / "a.tif"], channels=1).array.shape == (1, 4, 5, 6)
    assert reader.read_image([tmp_path / "a.tif"], channels=4).array.shape == (4, 1, 5, 6)
    assert np.array_equal(reader.read_label(tmp_path / "a.tif")[0], VOLUME)


def ome_xml(own, planes, blocks):
    """``blocks``: file, its identifier, and how many planes it holds; None instead of a file for this one."""
    data, first = "", 0
    for name, uid, number in blocks:
        uuid = f'<UUID FileName="{name}">urn:uuid:{uid}</UUID>' if name else ""
        data += f'<TiffData FirstZ="{first}" IFD="0" PlaneCount="{number}">{uuid}</TiffData>'
        first += number
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:{own}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="6" SizeY="5" SizeZ="{planes}" SizeC="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels>'
        "</Image></OME>"
    )


def write_pages(path, pages, description):
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate(pages):
            file.write(page, description=None if number else description, metadata=None, contiguous=False)


def test_of_a_set_of_ome_files_each_is_read_for_what_it_holds(reader, tmp_path, caplog):
    uids = [f"{digit * 8}-1111-1111-1111-111111111111" for digit in "12"]
    blocks = [("a.ome.tif", uids[0], 3), ("b.ome.tif", uids[1], 1)]
    write_pages(tmp_path / "a.ome.tif", VOLUME[:3], ome_xml(uids[0], 4, blocks))
    write_pages(tmp_path / "b.ome.tif", VOLUME[3:], ome_xml(uids[1], 4, blocks))
    assert np.array_equal(reader.read_image([tmp_path / "a.ome.tif"]).array[0], VOLUME[:3])
    assert np.array_equal(reader.read_image([tmp_path / "b.ome.tif"]).array[0], VOLUME[3:])
    assert caplog.text.count("parts of sets of files") == 1
    (tmp_path / "b.ome.tif").unlink()
    (tmp_path / "a.ome.tif").rename(tmp_path / "c_0000.tif")
    assert np.array_equal(reader.read_image([tmp_path / "c_0000.tif"]).array[0], VOLUME[:3])


@pytest.mark.parametrize(
    ("planes", "message"), [(6, "2 of 6 pages are not in this file"), (3, "has 4 pages, but its own description .* 3")]
)
def test_pages_that_a_description_does_not_agree_with_are_refused(reader, tmp_path, planes, message):
    write_pages(tmp_path / "a.tif", VOLUME, ome_xml("1", planes, [(None, "", min(planes, 4))]))
    with pytest.raises(SamunetError, match=rf"a\.tif.*{message}"):
        reader.read_image([tmp_path / "a.tif"])


def raw_tiff(path, data, bits=8, compression=1, count=None, next_page=0):
    """A page of 32 x 40 in one strip, tag by tag."""
    tags = [(256, 3, 40), (257, 3, 32), (258, 3, bits), (259, 3, compression), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 32), (279, 4, len(data) if count is None else count)]
    directory = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    start = 8 + len(data)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data + directory + struct.pack("<I", next_page and start))


def packed_bits(bits, picture):
    ones = (picture[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.astype(np.uint8).reshape(len(picture), -1), axis=1).tobytes()


@pytest.mark.parametrize("bits", [12, 13])
def test_values_packed_into_odd_numbers_of_bits_are_read(reader, tmp_path, bits):
    picture = np.random.default_rng(0).integers(0, 1 << bits, (32, 40))
    raw_tiff(tmp_path / "a.tif", packed_bits(bits, picture), bits=bits)
    assert np.array_equal(reader.read_image([tmp_path / "a.tif"]).array[0, 0], picture)


def test_pages_in_a_circle_and_pages_without_data_are_refused(reader, tmp_path):
    raw_tiff(tmp_path / "a.tif", bytes(1280), next_page=1)
    with pytest.raises(SamunetError, match=r"a\.tif is damaged: its pages follow each other in a circle"):
        reader.read_image([tmp_path / "a.tif"])
    raw_tiff(tmp_path / "b.tif", bytes(1280), count=0)
    with pytest.raises(SamunetError, match=r"b\.tif: 1 of 1 pages are not in this file"):
        reader.read_image([tmp_path / "b.tif"])


def test_pages_are_counted_before_they_are_read(reader, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 8, 8), np.uint8), photometric="minisblack", metadata=None)
    monkeypatch.setattr(tiff, "_MOST_PAGES", 4)
    assert reader.read_image([tmp_path / "a.tif"]).array.size == 256
    monkeypatch.setattr(tiff, "_MOST_PAGES", 3)
    with pytest.raises(SamunetError, match=r"a\.tif has more than 3 pages"):
        reader.read_image([tmp_path / "a.tif"])


def test_no_more_is_unpacked_than_a_page_and_memory_hold(reader, tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    raw_tiff(path, zlib.compress(bytes(1280)), compression=8)
    assert reader.read_image([path]).array.shape == (1, 1, 32, 40)
    monkeypatch.setattr(border, "_memory", lambda: 1279 * 16)
    with pytest.raises(SamunetError, match=r"a\.tif announces 32 x 40 = 1,280 values.*up to 1,279"):
        reader.read_image([path])
    monkeypatch.undo()
    raw_tiff(path, zlib.compress(bytes(100 << 20)), compression=8)
    with pytest.raises(SamunetError, match=r"could not read .*a\.tif: damaged"):
        reader.read_image([path])
