from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samunet.commands import build_parser
from samunet.errors import SamunetError, UsageError
from samunet.plans import IntensityStatistics
from samunet.report.overlays import choose_slices, ct_window, draw_overlay, is_colour, save_overlay


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


def panels(figure):
    return [panel.get_title() for panel in figure.axes]


def test_image_prediction_and_reference_stand_side_by_side():
    image, label = np.zeros((1, 5, 40, 40), np.float32), np.zeros((5, 40, 40), int)
    label[1:4, 5:35, 5:35] = 1
    figure = draw_overlay(image, label, label, ("background", "organ"), label * 50)
    heads = ["image", "prediction", "reference", "entropy (bright: uncertain)"]
    assert panels(figure) == [f"{head}, slice {z}" for z in (1, 2, 3) for head in heads]
    assert all(panel.images for panel in figure.axes)  # none is empty


def test_a_picture_has_no_slice_number_and_an_empty_one_no_empty_panel():
    image, label = np.zeros((1, 1, 40, 40), np.float32), np.zeros((1, 40, 40), int)
    figure = draw_overlay(image, label, label)
    assert panels(figure) == ["image", "prediction", "reference"]
    assert all(panel.images for panel in figure.axes)
    assert not any(panel.child_axes for panel in figure.axes)


def test_a_small_structure_fills_the_panel_and_the_whole_slice_is_an_inset():
    image, label = np.zeros((1, 1, 200, 300), np.float32), np.zeros((1, 200, 300), int)
    label[0, 20:80, 100:190] = 1  # 60 x 90: shown are 100 x 150 around its middle, (50, 145)
    first, second = draw_overlay(image, label).axes
    assert first.get_xlim() == second.get_xlim() == (69.5, 219.5)
    assert first.get_ylim() == second.get_ylim() == (99.5, -0.5)
    (inset,) = first.child_axes
    assert inset.images[0].get_array().shape[:2] == (200, 300)
    (frame,) = inset.patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (69.5, -0.5, 150, 100)
    assert not second.child_axes


def test_a_reference_without_foreground_leaves_the_choice_of_slices_to_the_prediction():
    image, label = np.zeros((1, 9, 40, 40), np.float32), np.zeros((9, 40, 40), int)
    label[7, 10:20, 10:20] = 1
    assert panels(draw_overlay(image, label, label * 0))[0] == "image, slice 7"


def test_a_window_is_what_is_black_and_white():
    image = np.linspace(-1000, 1000, 1600, dtype=np.float32).reshape(1, 1, 40, 40)
    parser = build_parser("samunet_report")
    window = parser.parse_args(["preds", "-window", "40", "400"]).window
    shown = draw_overlay(image, np.zeros((1, 40, 40), int), window=window).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, np.clip((image[0, 0] + 160) / 400, 0, 1), atol=1e-6)
    with pytest.raises(UsageError, match="-window 40 400"):
        parser.parse_args(["preds", "-window", "40", "0"])


def test_only_ct_has_the_window_of_the_plans():
    statistics = IntensityStatistics(
        mean=50, median=50, std=20, min=-900, max=900, percentile_00_5=-60, percentile_99_5=140
    )
    plans = SimpleNamespace(foreground_intensity_properties_per_channel={"0": statistics, "1": statistics})
    channels = SimpleNamespace(channel_names=("MRI", "CT"))
    assert ct_window(plans, channels, 1) == (-60, 140)
    assert ct_window(plans, channels) is None
    assert is_colour(["R", "Green", "b"])
    assert not is_colour(["red"])


def test_shapes_must_agree(tmp_path):
    with pytest.raises(SamunetError, match=r"reference has shape \(1, 8, 7\), the image \(1, 8, 8\)"):
        save_overlay(np.zeros((1, 1, 8, 8)), np.ones((1, 8, 8)), tmp_path / "x.png", reference=np.ones((1, 8, 7)))
