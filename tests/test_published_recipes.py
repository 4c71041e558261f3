"""The recipes samed and finetune_sam: their values, written out here or as published, and a training of each."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_loader import CaseInMemory, make_loader
from test_planner import describe, measure

from samunet.adaptations import AdapterPlan, LoraPlan
from samunet.commands import run_command
from samunet.encoders import ENCODERS
from samunet.errors import UsageError
from samunet.planning.planner import PlannerOptions, plan
from samunet.preprocessing.grid import SliceGrid, about_centre, flipped, sample
from samunet.preprocessing.normalize import normalize
from samunet.training.augmentation import seeded
from samunet.training.recipes import RECIPES
from samunet.training.recipes.finetune_sam import (
    ColourTransform,
    CropAndTurnTransform,
    FinetuneSam,
    ImageLoss,
    equalized,
    hue_turned,
)
from samunet.training.recipes.samed import SamedTransform, samed_rate
from samunet.training.schedule import Budget


class Stacks(CaseInMemory):
    """Slices whose every pixel is the number of the slice; class 1 on those named."""

    def __init__(self, depth, first, with_class=()):
        super().__init__((depth, 16, 16))
        self.arguments = depth, first, with_class
        values = first + np.arange(depth, dtype=np.float32)
        self.arrays["image"] = np.broadcast_to(values[:, None, None], self.shape)[None].copy()
        self.arrays["label"] = np.zeros(self.shape, np.int16)
        self.arrays["label"][list(with_class), 4:8, 4:8] = 1
        self.__dict__["class_locations"] = {1: np.argwhere(self.arrays["label"] == 1).astype(np.int32)}

    def __reduce__(self):
        return type(self), self.arguments


def slices_of(loader, iteration):
    return loader.batch(iteration)["data"].max(axis=(1, 2, 3)).round().astype(int).tolist()


def loader_of(recipe, cases, batch_size, seed=7):
    return make_loader(recipe=recipe, cases=cases, batch_size=batch_size, seed=seed, stretch=True)


def test_a_pass_has_every_slice_once_and_ends_with_what_is_left():
    cases = {"a": Stacks(30, 1), "b": Stacks(21, 31)}
    loader = loader_of(RECIPES["samed"], cases, 24)
    assert loader.batches_of_a_pass == 3
    batches = [slices_of(loader, iteration) for iteration in range(6)]
    assert [len(batch) for batch in batches] == [24, 24, 3, 24, 24, 3]
    first, second = ([one for batch in half for one in batch] for half in (batches[:3], batches[3:]))
    assert Counter(first) == Counter(second) == Counter(range(1, 52))
    assert first != second
    assert [slices_of(loader_of(RECIPES["samed"], cases, 24), iteration) for iteration in range(6)] == batches
    assert slices_of(loader_of(RECIPES["samed"], cases, 24, seed=8), 0) != batches[0]


def test_synapse_has_93_batches():
    loader = loader_of(RECIPES["samed"], {"a": Stacks(2211, 1)}, 24)
    assert loader.batches_of_a_pass == 93
    assert 160 * 93 == 14_880
    assert len(loader.batch(92)["data"]) == 3


def test_finetune_sam_leaves_out_slices_without_a_target():
    cases = {"a": Stacks(10, 1, with_class=(2, 3)), "b": Stacks(10, 11, with_class=(9,))}
    plain = type("Plain", (FinetuneSam,), {"transforms": RECIPES["samed"].transforms})
    loader = loader_of(plain, cases, 2)
    assert sorted(slices_of(loader, 0) + slices_of(loader, 1)) == [3, 4, 20]


def test_a_quarter_of_samed_s_items_stays_as_it_is():
    transform = SamedTransform((32, 32))
    with seeded(1):
        drawn = [transform.draw() for _ in range(20_000)]
    assert np.mean([np.array_equal(matrix, np.eye(3)) for matrix in drawn]) == pytest.approx(0.256, abs=0.01)


def test_samed_s_quarters_and_flips_move_whole_pixels():
    image = np.random.default_rng(0).random((24, 24)).astype(np.float32)
    for quarters in range(4):
        for axis in range(2):
            matrix = about_centre((24, 24), quarters * np.pi / 2, 1.0) @ flipped((24, 24), axis)
            moved = sample(torch.from_numpy(image)[None, None], matrix, (24, 24))[0, 0].numpy()
            candidates = [np.flip(np.rot90(image, turn), axis) for turn in (quarters, -quarters)]
            assert min(np.abs(moved - candidate).max() for candidate in candidates) < 1e-5


def test_samed_s_small_rotations_are_whole_degrees():
    transform = SamedTransform((32, 32))
    with seeded(2):
        drawn = [transform.draw() for _ in range(4000)]
    angles = {round(math.degrees(math.asin(m[1, 0]))) for m in drawn if abs(m[0, 1]) < 0.4 and m[0, 0] > 0.9}
    assert {-20, 19} <= angles
    assert angles <= set(range(-20, 20))


def test_schedule_of_samed_h():
    budget = Budget(iterations=27_900)  # 300 passes of 93
    assert samed_rate(budget, 250, 0, "vit_h") == 1
    middle = 27_900 // 2
    expected = (1 - (middle - 1 - 250) / 37_200) ** 7
    assert samed_rate(budget, middle, 0, "vit_h") == pytest.approx(expected, rel=1e-9)
    assert samed_rate(budget, middle, 0) == pytest.approx((1 - (middle - 251) / 34_875) ** 0.9, rel=1e-9)


def test_window_values():
    array = np.array([-200.0, -125, 75, 275, 400], np.float32).reshape(1, 1, 1, 5)
    normalize(array, ["window"], [False], None, {"0": None}, [[-125.0, 275.0]])
    assert array.ravel().tolist() == [0, 0, 0.5, 1, 1]


def ct_volumes(**options):
    shapes = [[30, 500 + side, 512] for side in range(0, 50, 10)]
    fingerprint = measure(shapes, [[3.0, 0.8, 0.8]] * 5)
    return plan("Dataset004_A", describe(channels=("CT",)), fingerprint, PlannerOptions(**options))


def test_plans_of_samed():
    configuration = ct_volumes(recipe="samed", encoder="vit_b").configuration("2d")
    network = configuration.networks["vit_b"]
    assert (configuration.normalization, configuration.windows) == (["window"], [[-125.0, 275.0]])
    assert (configuration.crop, network.stretch, network.passes) == (False, True, 160)
    assert (network.input_shape, network.batch_size * network.accumulation) == ([512, 512], 24)
    assert (network.learning_rate, network.optimizer) == (0.005, "adamw")
    assert ct_volumes(recipe="samed", encoder="vit_h").configuration("2d").networks["vit_h"].passes == 300


def test_plans_of_finetune_sam():
    configuration = ct_volumes(recipe="finetune_sam", encoder="vit_b", window=[-160, 240]).configuration("2d")
    network = configuration.networks["vit_b"]
    assert configuration.windows == [[-160, 240]]
    assert (network.input_shape, network.batch_size * network.accumulation) == ([1024, 1024], 4)
    assert (network.learning_rate, network.passes, network.stretch) == (1e-3, 200, True)
    assert network.adaptation.blocks == [0, 1, 10, 11]
    for adaptation, blocks in (
        (AdapterPlan(), [0, 1, 10, 11]),
        (LoraPlan(blocks="all"), "all"),
        (LoraPlan(blocks=[3]), [3]),
    ):
        options = {"recipe": "finetune_sam", "encoder": "vit_b", "adaptation": adaptation}
        assert ct_volumes(**options).configuration("2d").networks["vit_b"].adaptation.blocks == blocks


@pytest.mark.parametrize(
    ("window", "channels", "words"),
    [
        ([5, 5], ("CT",), "two numbers, the lower first"),
        ([5], ("CT",), "two numbers"),
        ([0, float("nan")], ("CT",), "finite|at"),
        ([0, 1], ("T1",), "for CT.*T1"),
    ],
)
def test_a_window_that_is_none(window, channels, words):
    fingerprint = measure([[30, 500, 512]] * 3, [[3.0, 0.8, 0.8]] * 3)
    with pytest.raises(UsageError, match=words):
        plan("Dataset004_A", describe(channels=channels), fingerprint, PlannerOptions(window=window))


def test_a_stretched_slice_fills_the_input():
    grid = SliceGrid.of((50, 80), [1.0, 0.5], 0.7, [64, 64], stretch=True)
    assert grid.covered_shape == (64, 64)
    image = torch.arange(80.0).expand(1, 1, 50, 80)
    found = sample(image, grid.window(grid.window_starts(0.5)[0]), (64, 64))[0, 0]
    assert found[10, 31:33].mean() == pytest.approx(39.5, abs=1e-3)


def test_rate_of_finetune_sam():
    recipe = SimpleNamespace()
    budget = Budget(iterations=10_000)
    rates = [1e-3 * FinetuneSam.rate(recipe, budget, update, 0) for update in (0, 199, 200, 1000)]
    assert rates == pytest.approx([5e-6, 1e-3, 1e-3, 9.277e-4], rel=1e-4)


def test_loss_of_finetune_sam_is_a_mean_over_images_and_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 8, 8, generator=generator)
    target = torch.randint(0, 4, (3, 32, 32), generator=generator)
    index = [round(place * 31 / 7) for place in range(8)]  # nearest, outer pixels on outer pixels
    small = target[:, index][:, :, index]
    dices = []
    for image in range(3):
        for value in range(4):
            p, t = torch.sigmoid(logits[image, value]), (small[image] == value).float()
            dices.append(1 - (2 * (p * t).sum() + 1e-5) / ((p * p).sum() + t.sum() + 1e-5))
    expected = F.cross_entropy(logits, small) + torch.stack(dices).mean()
    loss = ImageLoss()
    assert float(loss(logits, target)) == pytest.approx(float(expected), rel=1e-5)
    parts = loss.sums(logits[:1], target[:1]) + loss.sums(logits[1:], target[1:])
    assert float(loss.value(parts)) == pytest.approx(float(expected), rel=1e-5)


def test_equalisation_is_pillow_s():
    Image = pytest.importorskip("PIL.Image")
    from PIL import ImageOps

    levels = np.clip(np.random.default_rng(0).normal(90, 20, (40, 50)), 0, 255).astype(np.uint8)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(levels)))
    assert np.array_equal(np.rint(equalized(levels / np.float32(255)) * 255), expected)


def test_hue_is_colorsys_s():
    import colorsys

    image = np.random.default_rng(0).random((3, 5, 6))
    turned = hue_turned(image, 0.2)
    for y in range(5):
        for x in range(6):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x])
            assert turned[:, y, x] == pytest.approx(colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value), abs=1e-6)


def test_colours_of_a_grey_picture_are_a_line_through_its_mean():
    picture = np.random.default_rng(0).uniform(0.45, 0.55, (1, 1, 20, 20)).astype(np.float32)
    for seed in range(20):
        with seeded(seed):
            found = ColourTransform()(data=picture)["data"]
        assert found.shape == picture.shape
        slope, offset = np.polyfit(picture.ravel(), found.ravel(), 1)
        assert np.abs(slope * picture + offset - found).max() < 1e-5
        assert 0.7**2 - 1e-3 <= slope <= 1.3**2 + 1e-3  # contrast and brightness
        assert 0.7 - 1e-3 <= found.mean() / picture.mean() <= 1.3 + 1e-3


def test_colours_stay_on_0_1():
    picture = np.random.default_rng(0).random((1, 3, 20, 20)).astype(np.float32)
    for seed in range(20):
        with seeded(seed):
            found = ColourTransform()(data=picture)["data"]
        assert found.min() >= 0
        assert found.max() <= 1


def test_crops_have_the_published_areas():
    transform = CropAndTurnTransform((100, 100))
    with seeded(3):
        drawn = [transform.cropped() for _ in range(4000)]
    areas = np.array([abs(matrix[0, 0] * matrix[1, 1]) for matrix in drawn])
    assert areas.min() >= 0.48
    assert areas.max() <= 1
    # Ten draws are hardly ever all too large; then it would be the whole.
    assert np.mean(areas < 0.75) > 0.4
    ratios = np.array([matrix[1, 1] / matrix[0, 0] for matrix in drawn])
    assert ratios.min() > 0.74
    assert ratios.max() < 1.36


@pytest.mark.slow
def test_finetune_sam_trains_and_ends_when_it_gets_no_better(samunet_folders, tiny_dataset, monkeypatch, caplog):
    """With a rate of 0 no check is better than the first, and after 20 passes the training ends with the best."""
    from reduced import reduce_bundled_encoder

    reduce_bundled_encoder(monkeypatch, width=48, depth=2, heads=3, global_blocks=(1,))
    tiny_dataset()
    arguments = ["-d", "998", "-recipe", "finetune_sam", "-encoder", "small", "-image_size", "64"]
    assert run_command("samunet_plan_and_preprocess", arguments) == 0
    plans = json.loads((samunet_folders / "preprocessed/Dataset998_Tiny/samunetPlans.json").read_text())
    configuration = plans["configurations"]["2d"]
    assert (configuration["crop"], configuration["networks"]["small"]["stretch"]) == (False, True)
    caplog.set_level("INFO")
    assert run_command("samunet_train", ["998", "2d", "0", "--lr", "1e-12", "--epochs", "60"]) == 0
    [fold] = (samunet_folders / "results").rglob("fold_0")
    run = json.loads((fold / "run.json").read_text())
    assert ENCODERS["small"].width == 48
    assert run["iterations"] < 60 * 4
    assert "no better check in 20 passes" in caplog.text
