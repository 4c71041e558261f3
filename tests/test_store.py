"""What is stored comes back, and only what was stored completely counts as stored."""

import blosc2
import numpy as np
import pytest

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.preprocessing import store
from samunet.preprocessing.case import CaseRecord, PreparedCase
from samunet.preprocessing.checksums import open_array
from samunet.preprocessing.store import (
    MAX_LOCATIONS,
    StoredCase,
    class_locations,
    read_record,
    stored_key,
    write_case,
    write_record,
)

KEY = {"plans": "plans", "files": [{"name": "a.nii.gz", "bytes": 7, "time": 1, "sha256": "ab"}]}
GEOMETRY = Geometry((3.0, 0.1, 1 / 3), True, (1e-7, -2.5, 9.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), 3)
RECORD = CaseRecord(GEOMETRY, [2, 0, 1], [9, 12, 14], [[1, 6], [0, 12], [2, 12]], [0.7, 0.9])


def make_case(largest=3.0, highest=3):
    rng = np.random.default_rng(0)
    image = rng.uniform(-largest, largest, (2, 5, 12, 10)).astype(np.float32)
    image[0, 0, 0, 0] = largest
    label = rng.integers(-1, highest + 1, (5, 12, 10)).astype(np.int16)
    return PreparedCase(image, label, RECORD)


def test_round_trip(tmp_path):
    case = make_case()
    write_case(tmp_path, "a", case, KEY)
    stored = StoredCase(tmp_path, "a")
    assert stored.shape == (5, 12, 10)
    assert stored.image().dtype == np.float32
    assert np.array_equal(stored.image(), case.image.astype(np.float16))
    assert stored.label().dtype == np.int16
    assert np.array_equal(stored.label(), case.label)
    assert stored.record == RECORD
    expected = class_locations(case.label)
    assert stored.class_locations.keys() == expected.keys() == {1, 2, 3}
    assert all(np.array_equal(stored.class_locations[value], expected[value]) for value in expected)


def test_parts_of_a_case(tmp_path):
    case = make_case()
    write_case(tmp_path, "a", case, KEY)
    stored = StoredCase(tmp_path, "a")
    assert np.array_equal(stored.image(1, 3), case.image[:, 1:3].astype(np.float16))
    assert np.array_equal(stored.label(4, 5), case.label[4:5])


@pytest.mark.parametrize("largest", [70000.0, -70000.0, 1e6])
def test_beyond_half_precision_single_is_kept(tmp_path, largest):
    case = make_case(abs(largest))
    case.image[0, 0, 0, 0] = largest
    write_case(tmp_path, "a", case, KEY)
    assert np.array_equal(StoredCase(tmp_path, "a").image(), case.image)


@pytest.mark.parametrize("highest", [127, 128, 1000])
def test_many_classes(tmp_path, highest):
    case = make_case(highest=highest)
    case.label[0, 0, 0] = highest
    write_case(tmp_path, "a", case, KEY)
    assert np.array_equal(StoredCase(tmp_path, "a").label(), case.label)
    assert highest in StoredCase(tmp_path, "a").class_locations


def test_a_case_is_stored_only_with_its_json(tmp_path):
    assert stored_key(tmp_path, "a") == {}
    write_case(tmp_path, "a", make_case(), KEY)
    assert stored_key(tmp_path, "a") == stored_key(tmp_path, "a", labelled=True) == KEY
    assert stored_key(tmp_path, "a", labelled=False) == stored_key(tmp_path, "b") == {}
    for damaged in ("{", "[]", '{"key": 3}'):
        (tmp_path / "a.json").write_text(damaged)
        assert stored_key(tmp_path, "a") == {}
    (tmp_path / "a.json").unlink()
    assert stored_key(tmp_path, "a") == {}


@pytest.mark.parametrize("file", ["a.b2nd", "labels/a.b2nd", "labels/a.npz"])
def test_a_case_that_lost_a_file_is_not_stored(tmp_path, file):
    write_case(tmp_path, "a", make_case(), KEY)
    (tmp_path / file).unlink()
    assert stored_key(tmp_path, "a") == {}


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_an_interrupted_case_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_case(tmp_path, "a", make_case(), KEY)
    assert stored_key(tmp_path, "a") == {}


def test_a_case_interrupted_while_made_anew_is_stored_under_neither_key(tmp_path, monkeypatch):
    write_case(tmp_path, "a", make_case(), {"plans": "old", "files": []})
    monkeypatch.setattr(store, "write_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_case(tmp_path, "a", make_case(largest=9.0), {"plans": "new", "files": []})
    assert stored_key(tmp_path, "a") == {}  # its slices are the new ones already


def test_names_that_end_like_parts_of_another_case_are_kept_apart(tmp_path):
    cases = {name: make_case(largest) for largest, name in enumerate(["p", "p_seg", "p_locations", "labels"], start=1)}
    for name, case in cases.items():
        write_case(tmp_path, name, case, KEY)
    for name, case in cases.items():
        stored = StoredCase(tmp_path, name)
        assert np.array_equal(stored.image(), case.image.astype(np.float16))
        assert np.array_equal(stored.label(), case.label)


@pytest.mark.parametrize("damage", ["unlink", "cut"])
def test_damaged_slices_are_an_error_that_names_the_file(tmp_path, damage):
    write_case(tmp_path, "a", make_case(), KEY)
    path = tmp_path / "a.b2nd"
    if damage == "unlink":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SamunetError, match=r"a\.b2nd") as caught:
        StoredCase(tmp_path, "a", made_again="`api.preprocess(1)`").image()
    assert caught.value.hint == f"have them made again: rm -f {path}, then `api.preprocess(1)`"


FLIPS = 150


@pytest.mark.parametrize("cubes", [False, True])
@pytest.mark.parametrize("file", ["a.b2nd", "labels/a.b2nd", "labels/a.npz", "a.json"])
def test_no_flipped_bit_is_read_as_something_else(tmp_path, file, cubes):
    """Header, chunks and index of both arrays, places and record: all over each file, first and last bytes included."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, 9, 40, 33)).astype(np.float32)
    image[:, 3:6] = 0  # a chunk of one value is not in the file's data but in its index
    case = PreparedCase(image, (image[0] > 1).astype(np.int16), RECORD)
    write_case(tmp_path, "a", case, KEY, isotropic_chunks=cubes)

    def read():
        stored = StoredCase(tmp_path, "a")
        return stored.image(2, 7), stored.image(), stored.label(), stored.class_locations[1], stored.record

    expected = read()
    content = (tmp_path / file).read_bytes()
    ends = [*range(12), *range(len(content) - 12, len(content))]
    for place in [*ends, *rng.integers(0, len(content), FLIPS).tolist()]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(SamunetError, match=file.replace(".", r"\.")):
            read()
    (tmp_path / file).write_bytes(content)
    assert all(np.array_equal(one, other) for one, other in zip(read()[:4], expected[:4]))


def test_a_slice_is_read_though_another_chunk_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_CHUNK_BYTES", 1)  # a chunk a slice
    image = np.random.default_rng(0).normal(size=(1, 4, 30, 30)).astype(np.float32)
    write_case(tmp_path, "a", PreparedCase(image, None, RECORD), KEY)
    first, last = read_record(tmp_path, "a")["checksums"]["image"]["data"]
    content = bytearray((tmp_path / "a.b2nd").read_bytes())
    content[last - 5] ^= 4
    (tmp_path / "a.b2nd").write_bytes(content)
    stored = StoredCase(tmp_path, "a")
    assert np.array_equal(stored.image(0, 3), image[:, :3].astype(np.float16))
    with pytest.raises(SamunetError, match="damaged"):
        stored.image(3, 4)
    assert 0 < first < last < len(content)


def test_a_record_with_other_content_is_not_believed(tmp_path):
    write_case(tmp_path, "a", make_case(), KEY)
    record = read_record(tmp_path, "a")
    write_record(tmp_path, "a", record)
    assert stored_key(tmp_path, "a") == KEY
    path = tmp_path / "a.json"
    path.write_text(path.read_text().replace('"plans": "plans"', '"plans": "plant"'))
    assert stored_key(tmp_path, "a") == {}


def test_class_locations_of_small_classes_are_complete():
    label = np.zeros((3, 4, 5), dtype=np.int16)
    label[0, 0, 0] = -1
    label[1, 2, 3], label[2, 3, 4], label[0, 1, 0] = 1, 1, 4
    found = class_locations(label)
    assert {value: places.tolist() for value, places in found.items()} == {1: [[1, 2, 3], [2, 3, 4]], 4: [[0, 1, 0]]}


def test_class_locations_of_large_classes_are_drawn_from_the_whole_class():
    label = np.zeros((30, 20, 20), dtype=np.int16)
    label[5:25, 2:18] = 2
    places = class_locations(label)[2]
    assert places.shape == (MAX_LOCATIONS, 3)
    assert len(np.unique(places, axis=0)) == MAX_LOCATIONS
    assert (label[tuple(places.T)] == 2).all()
    # 20 slices of equal size: each has its twentieth of the places, give or take one.
    assert np.abs(np.bincount(places[:, 0], minlength=30)[5:25] - MAX_LOCATIONS / 20).max() <= 1


def test_a_case_without_foreground(tmp_path):
    case = PreparedCase(np.zeros((1, 2, 3, 4), dtype=np.float32), np.zeros((2, 3, 4), dtype=np.int16), RECORD)
    write_case(tmp_path, "a", case, KEY)
    assert StoredCase(tmp_path, "a").class_locations == {}


def test_slices_larger_than_a_block_may_be(tmp_path, monkeypatch):
    """Of 12 rows of 2 x 10 half-precision values, 40 bytes each, five fit into a block of 239 bytes."""
    import blosc2

    assert store._MOST_BLOCK_BYTES <= blosc2.MAX_BLOCKSIZE
    case = make_case()
    write_case(tmp_path, "a", case, KEY)
    assert blosc2.open(str(tmp_path / "a.b2nd"), mode="r").blocks == (2, 1, 12, 10)
    monkeypatch.setattr(store, "_MOST_BLOCK_BYTES", 239)
    write_case(tmp_path, "a", case, KEY)
    stored = StoredCase(tmp_path, "a")
    assert blosc2.open(str(tmp_path / "a.b2nd"), mode="r").blocks == (2, 1, 5, 10)
    assert np.array_equal(stored.image(), case.image.astype(np.float16))
    assert np.array_equal(stored.image(3, 4), case.image[:, 3:4].astype(np.float16))
    assert np.array_equal(stored.label(), case.label)


def lazy(path):
    """An expression that is computed by code in the file."""
    operand = blosc2.asarray(np.zeros((2, 5, 12, 10)), urlpath=str(path.with_name("operand.b2nd")), mode="w")
    (operand + 1).save(urlpath=str(path))


def with_metadata(path):
    array = blosc2.asarray(np.zeros((2, 5, 12, 10)), urlpath=str(path), mode="w", cparams={"codec": blosc2.Codec.LZ4})
    array.schunk.vlmeta["function"] = "import os"


def of_another_codec(path):
    blosc2.asarray(np.zeros((2, 5, 12, 10)), urlpath=str(path), mode="w", cparams={"codec": blosc2.Codec.ZSTD})


def with_a_filter(path):
    filters = {"codec": blosc2.Codec.LZ4, "filters": [blosc2.Filter.TRUNC_PREC], "filters_meta": [10]}
    blosc2.asarray(np.zeros((2, 5, 12, 10)), urlpath=str(path), mode="w", cparams=filters)


@pytest.mark.parametrize("write", [lazy, with_metadata, of_another_codec, with_a_filter])
def test_slices_of_another_making_are_refused(tmp_path, write):
    write(tmp_path / "a.b2nd")
    with pytest.raises(SamunetError, match=r"a\.b2nd is no array as samunet stores it, and could run code"):
        open_array(tmp_path / "a.b2nd")
