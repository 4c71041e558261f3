"""Windows, views and folds, with models whose output is known."""

import numpy as np
import pytest
import torch
from torch import nn

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.inference import logits as module
from samunet.inference.decoding import mask_type
from samunet.inference.logits import SlicePredictor, decode
from samunet.inference.views import gaussian, mirrored, shifted
from samunet.preprocessing.grid import SliceGrid, sample, shift

LABELS = Labels(("background", "bright"), ((0,), (1,)))


class Threshold(nn.Module):
    """Two classes: foreground where the centre channel is above ``level``. Sees every pixel alone."""

    def __init__(self, level: float = 0.0, channel: int = 0) -> None:
        super().__init__()
        self.level, self.channel = level, channel

    def forward(self, image):
        value = image[:, self.channel : self.channel + 1] - self.level
        return torch.cat([-value, value], dim=1)


def predictor(models=None, **changes):
    settings = {"neighbours": False, "device": torch.device("cpu"), "dtype": None, "batch_size": 2} | changes
    return SlicePredictor(models or [Threshold()], **settings)


def smooth_image(depth=3, height=40, width=52):
    z, y, x = np.meshgrid(np.arange(depth), np.arange(height), np.arange(width), indexing="ij")
    return np.sin(y / 6 + z) * np.cos(x / 8)[None].astype(np.float32)


def test_mask_on_the_original_grid():
    image = smooth_image()
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 0.5, [80, 104])
    mask = predictor().mask(image, grid, (40, 52), LABELS)
    assert mask.dtype == np.uint8
    assert (mask == (image[0] > 0)).mean() > 0.99


@pytest.mark.parametrize("step", [0.5, 1.0])
def test_windows_give_what_the_whole_slice_gives(step):
    image = smooth_image()
    whole = dict(predictor().logits(image, SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [40, 56]), (40, 52)))
    tiled = dict(predictor(step_size=step).logits(image, SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [16, 24]), (40, 52)))
    for z in whole:
        assert torch.allclose(whole[z], tiled[z], atol=1e-4)


def test_a_slice_larger_along_one_axis_only():
    image = smooth_image()
    tiled = dict(predictor().logits(image, SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [64, 24]), (40, 52)))
    assert torch.allclose(tiled[1][1].double(), torch.from_numpy(image[0, 1]).double(), atol=1e-4)


def test_mirroring_averages_what_each_flip_gives():
    class Ramp(nn.Module):
        """Adds the column number, so that mirrored predictions differ."""

        def forward(self, image):
            ramp = torch.arange(image.shape[3], dtype=torch.float32).expand(len(image), 1, image.shape[2], -1)
            return torch.cat([ramp, image], dim=1)

    image = smooth_image(1, 8, 10)
    grid = SliceGrid.of((8, 10), [1.0, 1.0], 1.0, [8, 10])
    ((_, plain),) = predictor([Ramp()]).logits(image, grid, (8, 10))
    ((_, mirrored),) = predictor([Ramp()], mirror_axes=[0, 1]).logits(image, grid, (8, 10))
    assert torch.allclose(plain[0], torch.arange(10.0).expand(8, -1), atol=1e-5)
    assert torch.allclose(mirrored[0], torch.full((8, 10), 4.5), atol=1e-5)
    assert torch.allclose(mirrored[1], plain[1], atol=1e-5)


def test_folds_are_averaged():
    image = smooth_image(1)
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [40, 52])
    ((_, logits),) = predictor([Threshold(0.0), Threshold(1.0)]).logits(image, grid, (40, 52))
    assert torch.allclose(logits[1].double(), torch.from_numpy(image[0, 0] - 0.5), atol=1e-5)


def test_neighbours_are_previous_this_and_next_slice():
    image = np.arange(4, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 8, 8), dtype=np.float32)
    grid = SliceGrid.of((8, 8), [1.0, 1.0], 1.0, [8, 8])
    for channel, expected in ((0, [0, 0, 1, 2]), (1, [0, 1, 2, 3]), (2, [1, 2, 3, 3])):
        found = predictor([Threshold(0.0, channel)], neighbours=True).logits(image, grid, (8, 8))
        assert [float(logits[1].mean()) for _, logits in found] == pytest.approx(expected)


class MeanOfSlab(nn.Module):
    """Every slice of a slab gets the mean of the slab; another slab never counts."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def forward(self, image):
        assert len(image) % self.slices == 0
        value = image.unflatten(0, (-1, self.slices)).mean(1).repeat_interleave(self.slices, 0)
        return torch.cat([-value, value], dim=1)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("windows", [[8, 8], [4, 4]], ids=["one window", "several"])
def test_a_network_of_slabs_gets_the_neighbours_of_every_slice(batch_size, windows):
    image = np.arange(4, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 8, 8), dtype=np.float32)
    grid = SliceGrid.of((8, 8), [1.0, 1.0], 1.0, windows)
    found = predictor([MeanOfSlab(3)], slab=3, batch_size=batch_size).logits(image, grid, (8, 8))
    # The first and the last slice repeat at the ends.
    expected = [1 / 3, 1, 2, 8 / 3]
    assert [float(logits[1].mean()) for _, logits in found] == pytest.approx(expected, rel=1e-5)


class Kernels(nn.Module):
    """Five classes from random convolutions of three channels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernels = torch.randn(5, 3, 5, 5, generator=generator)

    def forward(self, image):
        return nn.functional.conv2d(image, self.kernels, padding=2)


def straightforward(model, image, grid, shape, flips, starts=None):
    """Logits ``(z, classes, *shape)``: every window, mirrored or not, by itself, then one weighted mean."""
    found = []
    height, width = grid.input_shape
    starts = starts or grid.window_starts(0.5)
    top, left = map(min, zip(*starts))
    canvas_shape = [round(max(axis) - min(axis)) + side for axis, side in zip(zip(*starts), (height, width))]
    weight = gaussian(grid.input_shape, torch.device("cpu"))
    for z in range(image.shape[1]):
        slices = image[0, [max(z - 1, 0), z, min(z + 1, image.shape[1] - 1)]]
        total, weights = torch.zeros(5, *canvas_shape), torch.zeros(canvas_shape)
        for y, x in starts:
            window = sample(torch.from_numpy(slices)[None], grid.window((y, x)), grid.input_shape)
            mean = torch.stack([model(window.flip(flip)).flip(flip)[0] for flip in flips]).mean(0)
            at = (slice(round(y - top), round(y - top) + height), slice(round(x - left), round(x - left) + width))
            total[(slice(None), *at)] += weight * mean
            weights[at] += weight
        to_canvas = shift(-top, -left) @ grid.from_slice_of(shape)
        found.append(sample((total / weights)[None], to_canvas, shape, outside="border")[0])
    return torch.stack(found)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(16, 24), (40, 24), (40, 52)])
def test_batches_of_windows_and_bands_of_rows_change_nothing(shape, batch_size, monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 5, *shape)).astype(np.float32)
    grid = SliceGrid.of(shape, [1.0, 1.0], 0.9, [24, 32])
    original = (shape[0] * 2 + 1, shape[1] * 2)
    settings = {"neighbours": True, "mirror_axes": [0, 1], "batch_size": batch_size}
    expected = straightforward(Kernels(), image, grid, original, [(), (2,), (3,), (2, 3)])
    got = dict(predictor([Kernels()], **settings).logits(image, grid, original))
    assert list(got) == list(range(5))
    assert torch.allclose(torch.stack(list(got.values())), expected, atol=1e-5)
    monkeypatch.setattr(module, "_BAND_NUMBERS", 5 * original[1] * 3)  # three rows at a time
    labels = Labels(tuple("abcde"), tuple((value,) for value in range(5)))
    mask = predictor([Kernels()], **settings).mask(image, grid, original, labels)
    first, second = expected.topk(2, dim=1).values.unbind(1)
    clear = (first - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(mask[clear], expected.argmax(1).numpy()[clear])


def test_a_slice_that_fits_is_seen_through_five_windows():
    image = np.random.default_rng(0).normal(size=(1, 5, 16, 24)).astype(np.float32)
    grid = SliceGrid.of((16, 24), [1.0, 1.0], 0.9, [24, 32])
    ((y, x),) = grid.window_starts(0.5)
    starts = [(y, x), (y - 4, x - 4), (y - 4, x + 4), (y + 4, x - 4), (y + 4, x + 4)]
    expected = straightforward(Kernels(), image, grid, (33, 48), [()], starts)
    got = dict(predictor([Kernels()], neighbours=True, window_shift=4).logits(image, grid, (33, 48)))
    assert torch.allclose(torch.stack(list(got.values())), expected, atol=1e-4)
    once = straightforward(Kernels(), image, grid, (33, 48), [()])
    assert not torch.allclose(once, expected, atol=1e-2)


def test_views_are_brought_back_to_where_they_were():
    windows = torch.arange(2 * 8 * 9.0).reshape(1, 2, 8, 9)
    for view in mirrored([0, 1]):
        assert torch.equal(view.invert(view.apply(windows)), windows)
    assert torch.equal(mirrored([1])[1].apply(windows), windows.flip(3))
    views = shifted(2, (8, 9), torch.device("cpu"))
    assert torch.allclose(sum(view.share for view in views), torch.ones(8, 9))
    down_right = next(view for view in views if view.offset == (2, 2))
    assert torch.equal(down_right.apply(windows)[..., :6, :7], windows[..., 2:, 2:])
    assert torch.equal(down_right.invert(down_right.apply(windows))[..., 2:, 2:], windows[..., 2:, 2:])
    assert (down_right.share[:2] == 0).all()  # what it does not see, it has no part in
    assert (down_right.share[2:, 2:] > 0).all()


def test_windows_that_overlap_are_not_shifted():
    image = np.random.default_rng(0).normal(size=(1, 3, 40, 52)).astype(np.float32)
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 0.9, [24, 32])
    results = [
        dict(predictor([Kernels()], neighbours=True, window_shift=shifted).logits(image, grid, (40, 52)))
        for shifted in (0, 4)
    ]
    assert all(torch.equal(results[0][z], results[1][z]) for z in range(3))


def test_of_equal_logits_the_first_class_wins():
    labels = Labels(tuple("abc"), ((0,), (1,), (2,)))
    logits = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 5.0, 3.0]], [[0.0, 5.0, 4.0]]])
    assert decode(logits, labels).tolist() == [[0, 1, 2]]


def test_regions_are_painted_in_order():
    labels = Labels(("whole", "core"), ((1, 2), (2,)), class_order=(1, 2))
    logits = torch.tensor([[[-1.0, 1.0, 1.0, -1.0]], [[-1.0, -1.0, 1.0, 1.0]]])
    assert decode(logits, labels).tolist() == [[0, 1, 2, 2]]


def test_masks_of_many_classes_are_wider():
    assert mask_type(LABELS) == np.uint8
    assert mask_type(Labels(tuple(map(str, range(257))), tuple((value,) for value in range(257)))) == np.uint16


class Wrong(Threshold):
    """Answers with NaN in one pixel."""

    def forward(self, image):
        logits = super().forward(image)
        logits[0, 0, 3, 4] = torch.nan
        return logits


@pytest.mark.parametrize("models", [[Wrong()], [Threshold(), Wrong()]])
def test_logits_that_are_no_numbers_make_no_mask(models):
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 0.5, [80, 104])
    with pytest.raises(SamunetError, match=r"values that are no numbers \(computed in float32 on cpu\)"):
        predictor(models).mask(smooth_image(), grid, (40, 52), LABELS)


def test_an_image_that_is_no_number_is_not_blamed_on_the_model():
    image = smooth_image()
    image[0, 1, 2, 3] = np.inf
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 0.5, [80, 104])
    with pytest.raises(SamunetError, match="the prepared image has values that are no numbers"):
        predictor().mask(image, grid, (40, 52), LABELS)
