"""Segmentations of 3D Slicer: named segments, layers, cropped extents; and MHD with its RAW file in make_dataset."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.commands import run_command
from samunet.dataset.cases import Case
from samunet.dataset.check import complete_check
from samunet.dataset.description import description_from_json
from samunet.dataset.layout import read_dataset
from samunet.errors import SamunetError
from samunet.evaluation.summary import read_pair
from samunet.imageio.registry import reader_for
from samunet.imageio.same_grid import Grid, fitted
from samunet.preprocessing.case import read_case

SPACING, ORIGIN = (0.5, 0.8, 2.0), (-10.0, 20.0, 5.0)
# Axes x, y, z of an image turned by 90 degrees about z, so that a wrong order of axes shows.
TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
SHAPE = (6, 8, 10)
LIVER, TUMOUR = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
LIVER[1:4, 2:7, 3:8] = True
TUMOUR[2:4, 3:5, 4:6] = True


@pytest.fixture(autouse=True)
def work(samunet_folders, monkeypatch):
    (samunet_folders / "work").mkdir()
    monkeypatch.chdir(samunet_folders / "work")
    return samunet_folders / "work"


def scan(path, seed):
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(TURN.ravel())
    sitk.WriteImage(image, str(path))


def segmentation(path, segments, start=(0, 0, 0), shape=SHAPE, space="left-posterior-superior"):
    """``segments``: (name, value, layer, where); cropped to ``shape`` from ``start``, both (z, y, x)."""
    path.parent.mkdir(exist_ok=True)
    layers = np.zeros((1 + max(layer for _, _, layer, _ in segments), *SHAPE), np.uint8)
    for _, value, layer, where in segments:
        layers[layer][where] = value
    inside = tuple(slice(low, low + size) for low, size in zip(start, shape))
    layers = layers[(slice(None), *inside)]
    vectors = [",".join(f"{number:g}" for number in TURN[:, axis] * SPACING[axis]) for axis in range(3)]
    origin = np.array(ORIGIN) + TURN @ (np.array(start[::-1]) * SPACING)
    many = len(layers) > 1
    header = ["NRRD0004", "type: unsigned char", f"dimension: {3 + many}", f"space: {space}"]
    header += ["sizes: " + " ".join(map(str, ([len(layers)] if many else []) + list(layers.shape[:0:-1])))]
    header += ["space directions: " + "none " * many + " ".join(f"({vector})" for vector in vectors)]
    header += ["kinds: " + "list " * many + "domain domain domain", "encoding: gzip"]
    header += [f"space origin: ({','.join(f'{number:g}' for number in origin)})"]
    for number, (name, value, layer, _) in enumerate(segments):
        header += [f"Segment{number}_ID:=Segment_{number}", f"Segment{number}_Name:={name}"]
        header += [f"Segment{number}_LabelValue:={value}", f"Segment{number}_Layer:={layer}"]
        header += [f"Segment{number}_Tags:=Segmentation.Status:inprogress|DICOM.x:a^b|"]
    header += ["Segmentation_ReferenceImageExtentOffset:=" + " ".join(map(str, start[::-1]))]
    # Components run fastest.
    data = np.moveaxis(layers, 0, -1).tobytes() if many else layers.tobytes()
    path.write_bytes("\n".join([*header, "", ""]).encode() + gzip.compress(data))


def make(*arguments, status=0):
    flags = ["--channel_names", "CT", "--name", "Toy", "--id", "12"]
    assert (
        run_command("samunet_make_dataset", ["scans/{case}.nii.gz", "masks/{case}.seg.nrrd", *flags, *arguments])
        == status
    )


def labels():
    dataset = read_dataset("Dataset012_Toy")
    problems = [problem for problem in complete_check(dataset, progress=False).problems if not problem.warning]
    assert problems == []
    return dataset.description.labels, {
        name: read_case(case, dataset.description)[1] for name, case in dataset.cases.items()
    }


EXPECTED = np.where(TUMOUR, 2, LIVER)


def test_layers_and_cropped_extents_are_placed_by_geometry(work, capsys):
    scan(work / "scans/a.nii.gz", 0)
    scan(work / "scans/b.nii.gz", 1)
    # The same structures: overlapping in two layers with one value; and apart, with other values, in another order.
    segmentation(
        work / "masks/a.seg.nrrd", [("liver", 1, 0, LIVER), ("tumour", 1, 1, TUMOUR)], start=(1, 2, 3), shape=(3, 5, 5)
    )
    segmentation(work / "masks/b.seg.nrrd", [("tumour", 1, 0, TUMOUR), ("liver", 7, 0, LIVER & ~TUMOUR)])
    make(status=1)
    told = capsys.readouterr().err
    assert "segments overlap: a: liver and tumour (8 voxels)" in told or "tumour and liver (8 voxels)" in told
    assert "--paint_in_order" in told
    make("--labels", "liver", "tumour", "--paint_in_order")
    assert "tumour over liver" in capsys.readouterr().out
    names, read = labels()
    assert names.names == ("background", "liver", "tumour")
    assert np.array_equal(read["a"], EXPECTED)
    assert np.array_equal(read["b"], EXPECTED)


def test_names_decide_where_values_differ_and_values_where_names_do_not_fit(work, capsys):
    for seed, (case, values) in enumerate({"a": (1, 2), "b": (2, 1)}.items()):
        scan(work / f"scans/{case}.nii.gz", seed)
        parts = [("liver", values[0], 0, LIVER & ~TUMOUR), ("tumour", values[1], 0, TUMOUR)]
        segmentation(work / f"masks/{case}.seg.nrrd", parts)
    make()
    names, read = labels()
    assert names.names == ("background", "liver", "tumour")
    assert np.array_equal(read["a"], EXPECTED)
    assert np.array_equal(read["b"], EXPECTED)
    make("--labels", "Leber", "Herd", "--overwrite", status=1)
    assert "--labels liver tumour" in capsys.readouterr().err
    make("--labels", "liver", "vessel", "--overwrite", status=2)
    assert "--labels does not name the segment 'tumour'" in capsys.readouterr().err
    segmentation(work / "masks/b.seg.nrrd", [("liver", 1, 0, LIVER & ~TUMOUR), ("tumour", 2, 0, TUMOUR)])
    make("--labels", "Leber", "Herd", "--overwrite")
    names, read = labels()
    assert names.names == ("background", "Leber", "Herd")
    assert np.array_equal(read["b"], EXPECTED)


def test_a_segmentation_beside_its_image_is_no_image(work):
    for seed, case in enumerate("ab"):
        scan(work / f"both/{case}.nrrd", seed)
        segmentation(work / f"both/{case}.seg.nrrd", [("liver", 1, 0, LIVER)])
    flags = ["--channel_names", "CT", "--name", "Toy", "--id", "12"]
    assert run_command("samunet_make_dataset", ["both/{case}.nrrd", "both/{case}.seg.nrrd", *flags]) == 0
    names, read = labels()
    assert names.names == ("background", "liver")
    assert np.array_equal(read["b"], LIVER)


def test_a_cropped_segmentation_of_another_grid_is_refused(work, capsys):
    scan(work / "scans/a.nii.gz", 0)
    segmentation(work / "masks/a.seg.nrrd", [("liver", 1, 0, LIVER)], (1, 2, 3), (3, 5, 5), "right-anterior-superior")
    make(status=1)
    assert "a.seg.nrrd has shape (3, 5, 5)" in capsys.readouterr().err


def test_what_is_drawn_outside_the_image_is_not_cut_off(work):
    scan(work / "a.nii.gz", 0)
    geometry = reader_for(".nii.gz").read_image([work / "a.nii.gz"]).geometry
    segmentation(work / "b.seg.nrrd", [("liver", 1, 0, LIVER)], (1, 2, 3), (3, 5, 5))
    label, own = reader_for(".nrrd").read_label(work / "b.seg.nrrd")

    def placed(label, shape):
        file = work / "b.seg.nrrd"
        return fitted(label, Grid(file, label.shape, own), Grid(work / "scans/a.nii.gz", shape, geometry))

    assert np.array_equal(placed(label, SHAPE), LIVER)
    # Of a shorter image: the last drawn slice is 3.
    assert np.array_equal(placed(label, (4, 8, 10)), LIVER[:4])
    assert placed(label, (3, 8, 10)) is None
    assert placed(np.zeros_like(label), (1, 2, 3)).shape == (1, 2, 3)


def test_cropped_segmentations_as_labels_and_in_evaluation(work):
    """Put into labelsTr or scored as they are, they lie where their own geometry says."""
    scan(work / "a_0000.nrrd", 0)
    reader = reader_for(".nrrd")
    geometry = reader.read_image([work / "a_0000.nrrd"]).geometry
    segmentation(work / "a.nrrd", [("liver", 1, 0, LIVER)], (1, 2, 3), (3, 5, 5))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nrrd"}
    description = description_from_json(content, "dataset.json")
    case = Case("a", (work / "a_0000.nrrd",), work / "a.nrrd")
    assert np.array_equal(read_case(case, description)[1], LIVER)
    reader.write_label(LIVER.astype(int), work / "b.nrrd", geometry)
    for pair in (("a.nrrd", "b.nrrd"), ("b.nrrd", "a.nrrd")):
        one, other, _ = read_pair(*(work / name for name in pair), reader)
        assert np.array_equal(one, LIVER)
        assert np.array_equal(other, LIVER)
    # Cropped to different extents, both lie on a grid that holds both.
    segmentation(work / "c.nrrd", [("liver", 1, 0, LIVER | TUMOUR)], (0, 1, 3), (3, 6, 6))
    both = LIVER[0:4, 1:7, 3:9]
    assert LIVER.sum() == both.sum(), "the rest is background"
    for pair in (("a.nrrd", "c.nrrd"), ("c.nrrd", "a.nrrd")):
        maps = dict(zip(pair, read_pair(*(work / name for name in pair), reader)))
        assert np.array_equal(maps["a.nrrd"], both)
        assert np.array_equal(maps["c.nrrd"], np.where(np.arange(4)[:, None, None] < 3, both, 0))
    # A plain label map of that size is no part of anything.
    reader.write_label(LIVER[1:4, 2:7, 3:8].astype(int), work / "a.nrrd", reader.read_label(work / "a.nrrd")[1])
    with pytest.raises(SamunetError, match=r"a\.nrrd has shape \(3, 5, 5\)"):
        read_case(case, description)


def test_layers_as_a_label_map_where_they_are_one(work):
    reader = reader_for(".nrrd")
    segmentation(work / "a.seg.nrrd", [("liver", 3, 0, LIVER & ~TUMOUR), ("tumour", 5, 1, TUMOUR)])
    assert np.array_equal(reader.read_label(work / "a.seg.nrrd")[0], np.where(TUMOUR, 5, 3 * LIVER))
    segmentation(work / "b.seg.nrrd", [("liver", 3, 0, LIVER), ("tumour", 5, 1, TUMOUR)])
    with pytest.raises(SamunetError, match=r"b\.seg\.nrrd .*liver and tumour overlap(.|\n)*make_dataset"):
        reader.read_label(work / "b.seg.nrrd")
    segmentation(work / "c.seg.nrrd", [("liver", 1, 0, LIVER & ~TUMOUR), ("tumour", 1, 1, TUMOUR)])
    with pytest.raises(SamunetError, match=r"c\.seg\.nrrd .*some share a value"):
        reader.read_label(work / "c.seg.nrrd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"Segment1_Layer:=1", b"Segment1_Layer:=9"), "Segment1_Layer"),
        ((b"Segment1_LabelValue:=5", b"Segment1_LabelValue:=x"), "Segment1_LabelValue"),
        ((b"Segment1_LabelValue:=5", b"Segment1_LabelValue:=4"), "the value 5, which none of its segments has"),
        ((b"Segment1_Name:=tumour", b"Segment1_Name:=liver"), "two of its segments have the same name"),
    ],
)
def test_damaged_descriptions_of_segments_are_refused(work, change, message):
    path = work / "a.seg.nrrd"
    segmentation(path, [("liver", 3, 0, LIVER), ("tumour", 5, 1, TUMOUR)])
    path.write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(SamunetError, match=rf"a\.seg\.nrrd.*{message}"):
        reader_for(".nrrd").read_label(path)


def test_mhd_images_and_masks_become_whole_files(work, capsys):
    for case in "ab":
        scan(work / f"scans/{case}.mhd", ord(case))
        (work / "masks").mkdir(exist_ok=True)
        mask = sitk.GetImageFromArray(LIVER.astype(np.uint8))
        mask.CopyInformation(sitk.ReadImage(str(work / f"scans/{case}.mhd")))
        sitk.WriteImage(mask, str(work / f"masks/{case}.mhd"))
    arguments = ["scans", "masks", "--channel_names", "CT", "--name", "Toy", "--id", "12"]
    (work / "scans/b.raw").rename(work / "b.raw")
    assert run_command("samunet_make_dataset", arguments) == 1
    assert "b.mhd keeps its voxels in another file, b.raw, which is not beside it" in capsys.readouterr().err
    (work / "b.raw").rename(work / "scans/b.raw")
    assert run_command("samunet_make_dataset", arguments) == 0
    _, read = labels()
    assert np.array_equal(read["b"], LIVER)
    dataset = read_dataset("Dataset012_Toy")
    written, source = sitk.ReadImage(str(dataset.cases["b"].images[0])), sitk.ReadImage("scans/b.mhd")
    assert dataset.cases["b"].images[0].name == "b_0000.mha"
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(source))
    assert written.GetDirection() == source.GetDirection()
    (dataset.folder / "imagesTr").rename(dataset.folder / "old")
    (dataset.folder / "imagesTr").mkdir()
    for ending in ("mhd", "raw"):
        for case in "ab":
            (dataset.folder / f"imagesTr/{case}_0000.{ending}").write_bytes(
                (work / f"scans/{case}.{ending}").read_bytes()
            )
    told = [problem.text for problem in read_dataset("Dataset012_Toy").problems]
    assert any("headers with separate voxels, such as a_0000.mhd" in text for text in told)
