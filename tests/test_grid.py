"""How grids lie on each other, against positions worked out by hand and torch's own interpolation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import dice

from samunet.preprocessing.grid import SliceGrid, sample, sample_label, scaling, shift
from samunet.preprocessing.resample import reduce_image, reduce_label


def apply(matrix, y, x):
    return (matrix @ [y, x, 1])[:2]


def rotation(degrees, centre_y, centre_x):
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return shift(centre_y, centre_x) @ turn @ shift(-centre_y, -centre_x)


def test_scaling_keeps_the_outer_edges():
    matrix = scaling((4, 2.5))
    assert np.allclose(apply(matrix, -0.5, -0.5), [-0.5, -0.5])
    assert np.allclose(apply(matrix, 4 * 10 - 0.5, 2.5 * 20 - 0.5), [9.5, 19.5])
    assert np.allclose(apply(matrix, 0, 0), [-0.375, -0.3])  # the first of four pixels lies 1/8 from the edge


def test_maps_compose():
    assert np.allclose(scaling((2, 3)) @ scaling((5, 0.5)), scaling((10, 1.5)))
    assert np.allclose(scaling((2, 3)) @ scaling((1 / 2, 1 / 3)), np.eye(3))
    assert np.allclose(shift(2, 3) @ shift(-5, 1), shift(-3, 4))
    # A window that starts at network pixel (4, 6) of a slice enlarged twofold starts at stored position 2 and 3.
    assert np.allclose(apply(scaling((2, 2)) @ shift(4, 6), -0.5, -0.5), [1.5, 2.5])


@pytest.mark.parametrize("shape", [(21, 18), (20, 36), (7, 9), (31, 14)])
def test_sample_enlarges_as_interpolate_does(shape):
    images = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, size=shape, mode="bilinear", align_corners=False)
    result = sample(images, scaling((shape[0] / 7, shape[1] / 9)), shape, outside="border")
    assert torch.allclose(result, expected, atol=1e-5)


def test_sample_takes_a_window_and_fills_with_zeros():
    images = torch.arange(1.0, 21).reshape(1, 1, 4, 5)
    window = sample(images, shift(2, -1), (3, 3))[0, 0]
    assert torch.allclose(window, torch.tensor([[0.0, 11, 12], [0, 16, 17], [0, 0, 0]]), atol=1e-5)
    border = sample(images, shift(2, -1), (3, 3), outside="border")[0, 0]
    assert torch.allclose(border, torch.tensor([[11.0, 11, 12], [16, 16, 17], [16, 16, 17]]), atol=1e-5)


def test_sample_between_pixels():
    images = torch.tensor([[[[0.0, 4], [8, 20]]]])
    value = sample(images, shift(0.25, 0.5), (1, 1))
    assert value.item() == pytest.approx(0.75 * 2 + 0.25 * 14)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_reducing_averages_whole_pixels(factor):
    images = torch.rand(1, 2, 6 * factor, 5 * factor, generator=torch.Generator().manual_seed(1))
    result = sample(images, scaling((1 / factor, 1 / factor)), (6, 5))
    assert torch.allclose(result, F.avg_pool2d(images, factor), atol=1e-5)


def test_reducing_does_not_alias():
    # Stripes one pixel wide: picking single pixels would give stripes or a flat 0 or 1 instead of the mean.
    stripes = torch.tile(torch.tensor([0.0, 1.0]), (1, 1, 48, 24))
    for zoom in (0.5, 0.25, 0.31, 0.4):
        shape = (round(48 * zoom), round(48 * zoom))
        inner = sample(stripes, scaling((zoom, zoom)), shape, outside="border")[..., 1:-1]
        assert (inner - 0.5).abs().max() < 0.3, zoom


@pytest.mark.parametrize("zoom", [(0.7, 0.7), (0.4, 0.4), (1.25, 0.4), (0.4, 1.25)])
def test_no_line_vanishes_where_an_axis_is_reduced(zoom):
    shape = tuple(round(40 * factor) for factor in zoom)
    for line in range(10, 30):
        images = torch.zeros(2, 1, 40, 40)
        images[0, 0, line], images[1, 0, :, line] = 1, 1
        lines = sample(images, scaling(zoom), shape, outside="border").sum((1, 2, 3))
        # A line's share of the output is its share of the input: 1 / 40.
        expected = shape[0] * shape[1] / 40
        assert (lines > expected / 4).all(), line


MAPS = {
    "enlarging": scaling((2.3, 1.7)),
    "window": scaling((1.9, 2.2)) @ shift(-5.3, 4.6),
    "rotation": rotation(33, 8, 10),
    "rotation and enlarging": scaling((1.4, 1.8)) @ rotation(-117, 12, 15),
    "reducing": scaling((0.7, 0.8)) @ shift(-2.2, -1.7),
}


@pytest.mark.parametrize("name", MAPS)
def test_sample_label_is_the_argmax_of_interpolated_indicators(name):
    rng, shape, outside = np.random.default_rng(0), (26, 31), -1
    label = rng.integers(-1, 4, (17, 20)).astype(np.int16)
    classes = [0, 1, 2, 3, outside]
    indicators = torch.from_numpy(np.stack([label == value for value in classes]).astype(np.float64))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    positions = np.einsum("ij,jhw->ihw", MAPS[name], np.stack([rows, columns, np.ones(shape)]))
    grid = np.stack([(2 * positions[1] + 1) / 20 - 1, (2 * positions[0] + 1) / 17 - 1], axis=-1)
    weights = F.grid_sample(
        indicators[None], torch.from_numpy(grid)[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0].numpy()
    weights[-1] += 1 - weights.sum(0)  # what lies beyond the slice counts for the outside value
    ordered = np.sort(weights, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.8
    result = sample_label(label, MAPS[name], shape, outside=outside)
    assert result.dtype == label.dtype
    assert np.array_equal(result[clear], np.array(classes)[weights.argmax(0)][clear])


def test_sample_label_far_away_is_outside():
    label = np.ones((4, 5), dtype=np.int16)
    for y, x in ((1000, 0), (-1000, 0), (0, 1e7), (4, 0), (0, -9)):
        assert (sample_label(label, shift(y, x), (3, 3), outside=7) == 7).all()
    assert sample_label(label, shift(-1, 0), (3, 3), outside=7)[:, 0].tolist() == [7, 1, 1]


def test_two_classes_together_do_not_beat_one_larger_than_each():
    # At (0.4, 0.5): 0.3 for each of the two upper classes, 0.4 for the lower one, which has both lower pixels.
    label = np.array([[1, 2], [3, 3]], dtype=np.int16)
    assert sample_label(label, shift(0.4, 0.5), (1, 1), outside=0).item() == 3


@pytest.mark.parametrize(
    ("stored", "spacing", "network", "input_shape", "zoom", "covered"),
    [
        ((100, 80), [1.0, 2.0], 0.5, [224, 224], (2, 4), (200, 320)),
        ((100, 80), [0.5, 0.5], 0.625, [64, 64], (0.8, 0.8), (80, 64)),
        ((101, 80), [0.5, 0.5], 0.625, [64, 64], (0.8, 0.8), (81, 64)),
        ((3, 80), [0.1, 0.5], 0.5, [64, 64], (0.2, 1), (1, 80)),
        ((100, 80), None, None, [224, 224], (2.24, 2.24), (224, 180)),
        ((100, 400), None, None, [224, 200], (0.5, 0.5), (50, 200)),
        ((3000, 4000), None, None, [750, 1000], (0.25, 0.25), (750, 1000)),  # reduced fourfold: fits
        ((3000, 4000), None, None, [160, 224], (0.25, 0.25), (750, 1000)),  # does not fit: tiled
        ((4000, 100), None, None, [160, 224], (0.25, 0.25), (1000, 25)),
    ],
)
def test_zoom_and_covered_shape(stored, spacing, network, input_shape, zoom, covered):
    grid = SliceGrid.of(stored, spacing, network, input_shape)
    assert grid.zoom == pytest.approx(zoom)
    assert grid.covered_shape == covered


def test_window_and_another_sampling_lie_where_they_should():
    grid = SliceGrid.of((10, 20), [2.0, 1.0], 0.5, [64, 64])  # zoomed fourfold and twofold: 40 x 40
    assert np.allclose(apply(grid.window((4, 6)), -0.5, -0.5), [0.5, 2.5])
    # The original has twice as many pixels across: four zoomed pixels down and one across for each of its own.
    assert np.allclose(apply(grid.from_slice_of((10, 40)), 0, 0), [1.5, 0])
    assert np.allclose(apply(grid.from_slice_of((10, 40)), 9, 39), [37.5, 39])


@pytest.mark.parametrize("step", [0.5, 1.0, 0.25, 0.3])
@pytest.mark.parametrize("shape", [(65, 64), (300, 129), (97, 1000), (64, 63), (128, 191)])
def test_windows_cover_every_pixel(shape, step):
    grid = SliceGrid(shape, (1.0, 1.0), (64, 48))
    starts = grid.window_starts(step)
    assert len(set(starts)) == len(starts)
    covered = np.zeros(shape, dtype=bool)
    for y, x in starts:
        covered[max(0, math.floor(y)) : math.ceil(y) + 64, max(0, math.floor(x)) : math.ceil(x) + 48] = True
        assert 0 <= y <= shape[0] - 64 or (shape[0] <= 64 and y == (shape[0] - 64) / 2)
        assert 0 <= x <= shape[1] - 48
    assert covered.all()
    for axis, side in enumerate((64, 48)):
        gaps = np.diff(sorted({start[axis] for start in starts}))
        assert (gaps <= math.ceil(step * side)).all()  # starts are whole pixels


def test_a_smaller_slice_has_one_centred_window():
    grid = SliceGrid((20, 31), (2.0, 1.0), (64, 48))
    assert grid.window_starts(0.5) == [(-12.0, -8.5)]
    assert grid.free_range() == [(-12.0, -12.0), (-8.5, -8.5)]


def test_each_axis_has_its_own_windows():
    grid = SliceGrid((20, 100), (1.0, 1.0), (64, 48))
    assert grid.window_starts(1.0) == [(-22.0, 0.0), (-22.0, 26.0), (-22.0, 52.0)]
    assert grid.free_range() == [(-22.0, -22.0), (0.0, 52.0)]


WAYS = {
    "enlarged": ((120, 150), (120, 150), [1.0, 1.0], 0.5, (320, 320)),
    "unequal pixels": ((120, 150), (120, 150), [1.0, 0.7], 0.6, (224, 192)),
    "reduced": ((240, 300), (240, 300), [1.0, 1.0], 1.3, (192, 240)),
    "reduced on disk": ((240, 300), (121, 149), [1.0, 1.0], 0.6, (256, 256)),
    "without spacing": ((120, 150), (120, 150), None, None, (224, 256)),
    "without spacing, reduced": ((360, 450), (360, 450), None, None, (320, 320)),
    "without spacing, reduced fourfold": ((600, 800), (600, 800), None, None, (150, 200)),
}


def way_back(network_images, grid, original):
    """As prediction does it, for one window."""
    (start,) = grid.window_starts(0.5)
    return sample(network_images, shift(-start[0], -start[1]) @ grid.from_slice_of(original), original)[0]


@pytest.mark.parametrize(("original", "stored", "spacing", "network", "input_shape"), WAYS.values(), ids=WAYS)
def test_a_mask_survives_the_way_to_the_network_and_back(original, stored, spacing, network, input_shape):
    y, x = np.mgrid[: original[0], : original[1]] / np.array(original)[:, None, None]
    ellipse = np.hypot((y - 0.45) / 0.35, (x - 0.55) / 0.3) < 1
    mask = (ellipse * (1 + (x > 0.6))).astype(np.int16)
    grid = SliceGrid.of(stored, spacing, network, input_shape)
    window = grid.window(grid.window_starts(0.5)[0])
    label = sample_label(reduce_label(mask[None], stored)[0], window, input_shape, outside=0)
    logits = torch.from_numpy(np.stack([label == value for value in range(3)]).astype(np.float32))[None]
    result = way_back(logits, grid, original).argmax(0).numpy()
    for value in (1, 2):
        assert 1 - dice((result == value).ravel(), (mask == value).ravel()) > 0.98


@pytest.mark.parametrize(("original", "stored", "spacing", "network", "input_shape"), WAYS.values(), ids=WAYS)
def test_positions_survive_the_way_to_the_network_and_back(original, stored, spacing, network, input_shape):
    # Linear interpolation keeps linear functions, so each pixel that carries its own position must get it back.
    ramps = np.mgrid[: original[0], : original[1]].astype(np.float32)
    images = torch.from_numpy(reduce_image(ramps[:, None], stored)[:, 0])[None]
    grid = SliceGrid.of(stored, spacing, network, input_shape)
    inputs = sample(images, grid.window(grid.window_starts(0.5)[0]), input_shape)
    result = way_back(inputs, grid, original).numpy()
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert np.abs(result - ramps)[inner].max() < 0.01


def test_pixels_without_annotation_have_no_vote():
    label = np.full((4, 4), 9)
    label[1, 1], label[2, 2] = 1, 2
    # Nearest to (1, 1), between it and pixels without annotation: without the rule, those would win.
    assert sample_label(label, shift(1.4, 0.6), (1, 1), outside=0, ignore=9).item() == 1
    assert sample_label(label, shift(1.4, 0.6), (1, 1), outside=0).item() == 9
    assert sample_label(label, shift(0.6, 0.4), (1, 1), outside=0, ignore=9).item() == 9
    assert (sample_label(label, shift(0, 0), (4, 4), outside=0, ignore=9) == label).all()
    sparse = np.where(np.random.default_rng(0).random((1, 60, 60)) < 0.1, 1, 9)
    share = (reduce_label(sparse, (30, 30), ignore=9) == 1).mean()
    assert share == pytest.approx(0.1, abs=0.03)
    assert (reduce_label(sparse, (30, 30)) == 1).mean() < 0.05


@pytest.mark.parametrize("size", [(37, 50), (1, 6), (512, 300)])
def test_outside_border_is_grid_samples_border_without_its_padding(size, monkeypatch):
    """Every device samples with zeros outside; MPS knows no other padding for this."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    matrix = rotation(20, 5, 7) @ shift(-9, -14)
    plain, paddings = F.grid_sample, []

    def recorded(*arguments, padding_mode, **settings):
        paddings.append(padding_mode)
        return plain(*arguments, padding_mode=padding_mode, **settings)

    monkeypatch.setattr(F, "grid_sample", recorded)
    ours = sample(images, matrix, (60, 80), outside="border")
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    rows, columns = (along_y * y + along_x * x + start for along_y, along_x, start in matrix[:2].tolist())
    grid = torch.stack([(2 * columns + 1) / size[1] - 1, (2 * rows + 1) / size[0] - 1], dim=-1).float()
    expected = plain(images, grid.expand(2, -1, -1, -1), padding_mode="border", align_corners=False)
    assert torch.allclose(ours, expected, atol=2e-4)
    assert paddings == ["zeros"]
