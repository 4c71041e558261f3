"""The objectives against values made by hand, and against what they must do."""

import math

import pytest
import torch
from bundled_weights import prompts
from bundled_weights.contrast import SameRegion, draw_pixels, region_contrast, region_sizes
from bundled_weights.draw import Draw

from samunet.network.encoders import Features
from samunet.network.heads import SamHead
from samunet.training.pretraining.recipe import MaskedReconstruction

pytestmark = pytest.mark.full_network

CPU = torch.device("cpu")


def test_region_contrast_by_hand():
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]])
    labels, pixels = torch.tensor([[0, 0, 1]]), torch.tensor([[5, 6, 7]])
    # Pixels 0 and 1 have similarity 1 with each other and 0 with pixel 2, which has no partner.
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert float(region_contrast(features, labels, pixels, temperature=0.5)) == pytest.approx(expected, abs=1e-6)


def test_a_pixel_is_no_partner_of_itself():
    features = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 0, 1, 1]])
    assert float(region_contrast(features, labels, torch.tensor([[1, 1, 2, 2]]))) == 0.0
    assert torch.isfinite(region_contrast(features, torch.zeros(1, 4).long(), torch.tensor([[1, 1, 1, 2]])))


def test_pixels_are_drawn_evenly_over_regions_where_asked():
    regions = torch.zeros(1, 10, 10, dtype=torch.long)
    regions[0, 0] = 1
    assert region_sizes(regions)[0, :3].tolist() == [90, 10, 0]
    for evenness, share in ((0.0, 0.1), (1.0, 0.5)):
        pixels = draw_pixels(regions, 4000, Draw(CPU, 0), evenness)
        assert abs(float((pixels < 10).float().mean()) - share) < 0.03


def test_same_region_reads_the_features_where_the_pixel_lies():
    """Where features are of two directions, left and right, regions that lie so score better than turned ones."""
    torch.manual_seed(0)
    objective = SameRegion(8)
    features = torch.zeros(2, 8, 16, 16)
    features[:, :4, :, :8], features[:, 4:, :, 8:] = 30.0, 30.0
    regions = torch.zeros(2, 64, 64, dtype=torch.long)
    regions[:, :, 32:] = 1
    with torch.no_grad():
        right = objective(features, regions, Draw(CPU, 1))
        wrong = objective(features, regions.mT.contiguous(), Draw(CPU, 1))
    assert right < wrong - 0.3


def test_hidden_squares_and_their_reconstruction_by_hand():
    objective = MaskedReconstruction(embedding=6, patch_size=4)
    images = torch.full((3, 3, 40, 40), 2.0)
    seen, mask = objective.hide(images, Draw(CPU, 2))
    assert mask.shape == (3, 1, 40, 40)
    assert mask.sum(dim=(1, 2, 3)).tolist() == [15 * 64] * 3  # squares of 8 px
    assert torch.equal(seen, 2 * (1 - mask).expand(-1, 3, -1, -1))
    torch.nn.init.zeros_(objective.pixels.weight)
    torch.nn.init.constant_(objective.pixels.bias, 1.5)
    assert float(objective(torch.zeros(3, 6, 10, 10), images, mask).detach()) == pytest.approx(0.5)


def test_reconstruction_puts_pixels_in_their_place():
    objective = MaskedReconstruction(embedding=3 * 16, patch_size=4)
    torch.nn.init.zeros_(objective.pixels.bias)
    objective.pixels.weight.data = torch.eye(3 * 16)[:, :, None, None]
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = torch.nn.functional.pixel_unshuffle(images, 4)
    assert float(objective(tokens, images, torch.ones(1, 1, 16, 16)).detach()) == 0.0


def test_connected_stops_at_the_region_and_follows_its_bends():
    inside = torch.tensor(
        [[1, 1, 1, 1, 0, 1],
         [0, 0, 0, 1, 0, 1],
         [1, 1, 1, 1, 0, 1],
         [1, 0, 0, 0, 0, 0],
         [0, 1, 0, 0, 1, 1]]
    )[None].bool()  # fmt: skip
    start = torch.zeros_like(inside)
    start[0, 0, 0] = True
    expected = inside.clone()
    expected[0, :, 4:] = False  # another piece; diagonal steps connect
    assert torch.equal(prompts.connected(start, inside), expected)


def test_targets_are_pieces_of_one_region_of_sensible_size():
    regions = torch.zeros(40, 16, 16, dtype=torch.long)
    regions[:, 2:5, 2:5], regions[:, 10:13, 10:13], regions[:, 8, 8] = 1, 1, 2
    target, place = prompts.draw_target(regions, Draw(CPU, 3))
    assert target.sum(dim=(1, 2)).tolist() == [9] * 40  # not the background, not the single pixel, one piece of two
    assert target.flatten(1).gather(1, place[:, None]).all()
    whole, _ = prompts.draw_target(torch.zeros(1, 4, 4, dtype=torch.long), Draw(CPU, 3))
    assert whole.all()


def test_boxes_surround_the_target_in_pixels(monkeypatch):
    monkeypatch.setattr(prompts, "_JITTER", 0.0)
    target = torch.zeros(1, 10, 8, dtype=torch.bool)
    target[0, 2:5, 3:7] = True
    assert prompts._boxes(target, Draw(CPU, 0)).tolist() == [[12.0, 8.0, 28.0, 20.0]]


def test_clicks_lie_inside_and_outside_of_the_target():
    target = torch.zeros(1, 10, 8, dtype=torch.bool)
    target[0, 2, 3] = True
    seen = set()
    for key in range(8):
        points, labels = prompts._clicks(target, torch.tensor([2 * 8 + 3]), Draw(CPU, key))
        assert points[0, 0].tolist() == [14.0, 10.0]  # x, y
        for (x, y), label in zip(points[0].long().tolist(), labels[0].tolist()):
            assert bool(target[0, y // 4, x // 4]) == bool(label)
        seen.add(tuple(labels[0].tolist()))
    assert seen == {(1,), (1, 0)}


def test_mask_losses_and_overlap_by_hand():
    target = torch.tensor([[[True, True], [False, False]]])
    perfect = torch.where(target, 50.0, -50.0)
    masks = torch.stack([perfect, -perfect, torch.zeros_like(perfect)], dim=1)
    losses = prompts.mask_losses(masks, target)[0]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert float(losses[1]) == pytest.approx(50 + 1 - 1 / 5)
    assert float(losses[2]) == pytest.approx(math.log(2) + 1 - 3 / 5)  # half of everything
    half = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    assert prompts.overlap(half, target).tolist() == [[pytest.approx(1 / 3)]]


def test_decode_is_sams_decoder():
    torch.manual_seed(0)
    head = SamHead(4, 4, 16, 32).eval()
    embedding = torch.randn(1, 32, 4, 4)
    points = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[1]])
    sparse, dense = head.prompt_encoder(points, None, None)
    with torch.no_grad():
        tokens, upscaled = head.decode(Features(embedding), torch.randn(1, 3, 64, 64), sparse)
        masks, quality = head.masks(tokens, upscaled), head.mask_decoder.iou_prediction_head(tokens[:, 0])
        expected = head.mask_decoder.predict_masks(embedding, head.prompt_encoder.get_dense_pe(), sparse, dense)
    assert torch.allclose(masks, expected[0], atol=1e-5)
    assert torch.allclose(quality, expected[1], atol=1e-5)


def test_prompts_can_be_learned():
    """A few updates on one batch lower the loss, and every part of the decoder gets a gradient."""
    torch.manual_seed(0)
    head = SamHead(4, 4, 16, 32)
    head.requires_grad_(True)
    embedding = torch.nn.Parameter(torch.randn(4, 32, 4, 4))
    regions = torch.zeros(4, 64, 64, dtype=torch.long)
    regions[:, 8:40, 8:40] = 1
    optimizer = torch.optim.Adam([embedding, *head.parameters()], lr=5e-3)
    losses = []
    for _ in range(45):
        loss = prompts.prompt_loss(head, Features(embedding), torch.zeros(4, 3, 64, 64), regions, Draw(CPU, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert all(parameter.grad is not None for parameter in head.mask_decoder.transformer.parameters())
    assert all(parameter.grad is not None for parameter in head.mask_decoder.iou_prediction_head.parameters())
