"""Synthetic images: repeatable, in the encoder's range, with regions of sensible number and size, of every family."""

import numpy as np
import pytest
import torch
from bundled_weights.appearance import KINDS, _resolution
from bundled_weights.draw import Draw
from bundled_weights.label_maps import BASES, MOST_REGIONS, OBJECTS, _highest, _renumber, _stamp, draw_label_maps
from bundled_weights.synthesis import synthetic_batch

pytestmark = pytest.mark.full_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch():
    return synthetic_batch(seed=1, number=0, batch_size=48, size=64, device=CPU)


def test_a_batch_depends_on_seed_and_number_alone(batch):
    torch.rand(3)
    again = synthetic_batch(1, 0, 48, 64, CPU)
    assert torch.equal(again.images, batch.images)
    assert torch.equal(again.regions, batch.regions)
    for other in (synthetic_batch(1, 1, 48, 64, CPU), synthetic_batch(2, 0, 48, 64, CPU)):
        assert not torch.equal(other.images, batch.images)
        assert not torch.equal(other.regions, batch.regions)


def test_images_are_in_the_range_that_the_encoder_gets(batch):
    assert batch.images.shape == (48, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert torch.isfinite(batch.images).all()
    assert batch.images.abs().max() <= 5
    colour = batch.images[[kind == "colour" for kind in batch.kinds]]
    assert colour.abs().max() <= 2  # (0..1 - 0.5) / 0.25
    assert batch.images.std(dim=(1, 2, 3)).min() > 0.2


def test_channels_follow_the_kind(batch):
    assert set(batch.kinds) == set(KINDS)
    same = {kind: [] for kind in KINDS}
    for image, kind in zip(batch.images, batch.kinds):
        same[kind].append(torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]))
    assert all(same["grey"])
    assert not any(same["colour"])
    assert np.mean(same["slices"]) < 0.5  # those without noise may not have moved by a pixel


def test_regions_are_numbered_without_gaps_and_are_neither_too_few_nor_too_many(batch):
    assert batch.regions.dtype == torch.int64
    for regions in batch.regions:
        values, sizes = regions.unique(return_counts=True)
        assert values.tolist() == list(range(len(values)))
        assert 2 <= len(values) <= MOST_REGIONS
        assert sizes.max() < 0.999 * regions.numel()
    median = np.median([float(regions.unique(return_counts=True)[1].float().median()) for regions in batch.regions])
    assert 0.005 < median / 64**2 < 0.5


def test_every_family_occurs(batch):
    assert set().union(*batch.families) == set(BASES) | set(OBJECTS) | {"body"}


@pytest.mark.parametrize("family", [*BASES, *OBJECTS])
def test_numbers_of_a_family_stay_within_its_own(family):
    most = 16 if family in BASES else OBJECTS[family][2]
    paint = BASES[family] if family in BASES else OBJECTS[family][0]
    painted = paint(Draw(CPU, 3), 12, 64)
    assert painted.shape == (12, 64, 64)
    assert painted.min() >= (1 if family in BASES else 0)
    assert painted.max() <= most
    assert (painted.flatten(1).amax(1) > 0).float().mean() > 0.8


def test_thin_objects_are_thin_and_small_ones_small():
    tree = OBJECTS["trees"][0](Draw(CPU, 4), 16, 224)
    assert (tree > 0).float().mean() < 0.1
    spots = OBJECTS["spots"][0](Draw(CPU, 4), 16, 224)
    assert 0 < (spots > 0).float().mean() < 0.1


def test_an_image_shows_its_regions(batch):
    """Regions differ in intensity: knowing them explains a good part of the variance of most images."""
    shares = []
    for image, regions in zip(batch.images[:, 1], batch.regions):
        flat, labels = image.flatten(), regions.flatten()
        sums = torch.zeros(MOST_REGIONS).index_add(0, labels, flat)
        counts = torch.zeros(MOST_REGIONS).index_add(0, labels, torch.ones_like(flat))
        shares.append(float((sums / counts.clamp(min=1))[labels].var() / flat.var()))
    assert np.median(shares) > 0.3


def test_stamps_are_discs_cut_at_the_border():
    places, radii = torch.tensor([[[5.5, 5.5], [0.5, 9.5], [3.0, 3.0]]]), torch.tensor([[2.0, 1.0, 0.0]])
    painted = _stamp(places, radii, torch.tensor([[1, 2, 3]]), 10, 2)[0]
    assert painted[5].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert painted[3].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert int((painted == 1).sum()) == 13
    assert (painted == 2).nonzero().tolist() == [[0, 8], [0, 9], [1, 9]]
    assert not (painted == 3).any()


def test_renumbering_closes_gaps_per_map():
    labels = torch.tensor([[[0, 5], [9, 5]], [[2, 2], [2, 7]]])
    assert _renumber(labels, 10).tolist() == [[[0, 1], [2, 1]], [[0, 0], [0, 1]]]


def test_highest_is_argmax():
    fields = torch.randn(2, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    fields[:, 3] = -torch.inf
    assert torch.equal(_highest(fields), fields.argmax(1))


def test_smooth_fields_have_unit_variance_at_every_scale():
    for detail in (1.0, 8.0):
        fields = Draw(CPU, 5).smooth(400, 32, torch.full((400,), detail))
        assert abs(float(fields.mean())) < 0.1
        assert abs(float(fields.std()) - 1) < 0.1


def test_blur_and_coarse_sampling_keep_a_constant_image():
    matrices = _resolution(Draw(CPU, 6), 20, 64)
    assert torch.allclose(matrices.sum(-1), torch.ones(20, 2, 64), atol=1e-4)
    assert matrices.min() >= 0
    centre = (matrices * torch.arange(64)).sum(-1)  # nothing is displaced
    assert (centre - torch.arange(64))[..., 8:-8].abs().max() < 2


def test_maps_of_one_image_and_of_odd_sizes():
    regions, families = draw_label_maps(Draw(CPU, 7), 1, 50)
    assert regions.shape == (1, 50, 50)
    assert len(families) == 1
