import numpy as np
import pytest
from PIL import Image

from samunet.errors import SamunetError
from samunet.inference.overlays import choose_slices, save_overlay


def test_slices_with_most_foreground_in_each_third():
    label = np.zeros((12, 4, 4), int)
    for z, size in {2: 1, 3: 4, 4: 2, 5: 1, 6: 1, 7: 3, 8: 2, 9: 4, 10: 1}.items():
        label[z].flat[:size] = 1
    assert choose_slices(label) == [3, 7, 9]
    assert choose_slices(label[3:4]) == [0]
    assert choose_slices(np.zeros((7, 2, 2), int)) == [3]


def test_classes_are_coloured_and_the_rest_is_grey(tmp_path):
    image = np.random.default_rng(0).normal(size=(1, 3, 20, 20)).astype(np.float32)
    label = np.zeros((3, 20, 20), int)
    label[1, 5:12, 0:9] = 2
    colour = {}
    for name, array in (("empty", label * 0), ("filled", label)):
        save_overlay(image, array, tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        colour[name] = np.ptp(pixels, axis=2).max()
    assert colour["empty"] == 0
    assert colour["filled"] > 60


def test_reference_adds_a_row(tmp_path):
    image, label = np.zeros((1, 1, 8, 8), np.float32), np.ones((1, 8, 8), int)
    save_overlay(image, label, tmp_path / "one.png", names=("background", "organ"))
    save_overlay(image, label, tmp_path / "two.png", reference=label, names=("background", "organ"))
    assert Image.open(tmp_path / "two.png").height > 1.5 * Image.open(tmp_path / "one.png").height


def test_shapes_must_agree(tmp_path):
    with pytest.raises(SamunetError, match=r"reference has shape \(1, 8, 7\), the image \(1, 8, 8\)"):
        save_overlay(np.zeros((1, 1, 8, 8)), np.ones((1, 8, 8)), tmp_path / "x.png", reference=np.ones((1, 8, 7)))
