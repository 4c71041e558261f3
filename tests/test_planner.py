"""Whole plans from made-up fingerprints; single rules are tested beside this file."""

import pytest

from samunet.adaptations import FullPlan, LoraPlan
from samunet.dataset.description import description_from_json
from samunet.encoders import encoder_facts
from samunet.errors import UsageError
from samunet.planning import resources
from samunet.planning.fingerprint import CaseFingerprint, Fingerprint
from samunet.planning.orientation import turned_fingerprint
from samunet.planning.planner import PlannerOptions, plan
from samunet.plans import IntensityStatistics, read_plans


def describe(channels=("MRI",), labels=("background", "a", "b"), ending=".nii.gz"):
    content = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {name: value for value, name in enumerate(labels)},
        "file_ending": ending,
        "numTraining": 3,
    }
    return description_from_json(content, "dataset.json")


def measure(
    shapes,
    spacings,
    physical=True,
    channels=1,
    largest=1000.0,
    kept=1.0,
    integer=True,
    voxels=9,
    faces=(0, 0, 0),
    positions=None,
    asymmetry=(0, 0, 0),
):
    positions = positions or [{str(value): [] for value in range(1, 300)}] * len(shapes)
    cases = {
        f"case_{index}": CaseFingerprint(
            spacing=list(spacing), shape=list(shape), shape_after_crop=list(shape), class_voxels={"1": voxels},
            class_faces={"1": list(faces)}, class_centres=dict(positions[index]),
            class_spreads={value: [1.0] * len(centre) for value, centre in positions[index].items()},
            integer=integer,
            minimum=[0.0] * channels, maximum=[largest] * channels,
        )
        for index, (shape, spacing) in enumerate(zip(shapes, spacings))
    }  # fmt: skip
    statistics = IntensityStatistics(
        mean=1.0, median=1.0, std=1.0, min=0.0, max=2.0, percentile_00_5=0.0, percentile_99_5=2.0
    )
    return Fingerprint(
        spacings=[case.spacing for case in cases.values()],
        shapes_after_crop=[case.shape_after_crop for case in cases.values()],
        foreground_intensity_properties_per_channel={str(index): statistics for index in range(channels)},
        median_relative_size_after_cropping=kept, cases=cases, asymmetry=list(asymmetry), empty_cases=[],
        physical_spacing=physical, source="x",
    )  # fmt: skip


def hippocampus():
    """Three cases with the median shape and spacing of the dataset of that name."""
    return measure([(36, 50, 35), (30, 48, 33), (40, 52, 36)], [(1, 1, 1)] * 3)


def make_plan(fingerprint=None, description=None, **options):
    return plan("Dataset004_A", description or describe(), fingerprint or hippocampus(), PlannerOptions(**options))


def test_isotropic_volumes():
    plans = make_plan()
    assert plans.transpose_forward == [0, 1, 2]
    assert plans.original_median_spacing == [1, 1, 1]
    assert plans.original_median_shape == [36, 50, 35]
    assert plans.image_reader == "SimpleITKIO"
    assert plans.physical_spacing
    configuration = plans.configuration("2d")
    assert configuration.data_identifier == "samunetPlans_2d"
    assert configuration.spacing == [1, 1]
    assert configuration.median_shape == [36, 50, 35]
    assert configuration.normalization == ["zscore"]
    assert configuration.use_mask_for_norm == [False]
    assert configuration.mirror_axes == [0, 1]
    bundled, sam = configuration.networks["small"], configuration.networks["vit_b"]
    assert configuration.planes == [[0, 1, 2], [1, 0, 2], [2, 1, 0]]
    # 50 px twofold are 100: the 112 px above it; the widest plane is that of y and z: 36 / 50 of 112 are 80.6, six
    # patches of 16.
    assert (bundled.encoder, bundled.input_shape, bundled.adaptation) == ("small", [112, 96], FullPlan())
    assert bundled.spacing == pytest.approx(50 / 112)
    # 36 / 50 of 1024 are 737.3, 47 patches of 16.
    assert (sam.encoder, sam.input_shape, sam.adaptation) == ("vit_b", [1024, 752], LoraPlan())
    assert sam.spacing == pytest.approx(50 / 1024)
    for network in (bundled, sam):
        assert network.input_channels == "neighbours"
        assert network.batch_size * network.accumulation == 12
        assert network.memory_bytes <= 8e9
        assert network.training_images == {"cpu": 16_000, "gpu": 48_000}  # 106 slices: the least


def test_every_decision_has_a_reason():
    plans = make_plan()
    configuration = plans.configuration("2d")
    assert plans.why["transpose_forward"]
    decisions = set(type(configuration).model_fields) - {"data_identifier", "median_shape", "networks", "why"}
    assert decisions <= configuration.why.keys()
    for network in configuration.networks.values():
        for decision in (
            "input_shape", "adaptation", "input_channels", "checkpoint_blocks", "batch_size", "learning_rate",
            "optimizer",
        ):  # fmt: skip
            assert network.why[decision]


def test_slices_across_the_last_axis_are_reduced_to_the_median():
    # Stored in the order z', y', x' = axes 2, 0, 1; the case with half the median spacing is halved.
    fingerprint = measure([(40, 60, 9), (80, 120, 11), (40, 60, 10)], [(2, 2, 8), (1, 1, 8), (2, 2, 8)])
    plans = make_plan(fingerprint)
    configuration = plans.configuration("2d")
    assert plans.transpose_forward == [2, 0, 1]
    assert plans.original_median_spacing == [8, 2, 2]
    assert plans.original_median_shape == [10, 40, 60]
    assert configuration.spacing == [2, 2]
    assert configuration.median_shape == [10, 40, 60]
    bundled = configuration.networks["small"]
    assert bundled.input_shape == [160, 224]  # 40 / 60 of 224 are 149.3 px, ten patches of 16
    assert bundled.spacing == pytest.approx(120 / 224)  # the long side has 120 mm
    assert bundled.input_channels == "neighbours"  # 8 mm are 4 pixels


@pytest.mark.parametrize(("edges", "size"), [(0, 224), (400, 224), (600, 336), (900, 448), (1100, 560), (9000, 560)])
def test_thin_structures_get_a_larger_input(edges, size):
    # 1000 pixels of 0.5 x 0.5 mm with so many edges: 2000 / (edges x pi / 4) pixels wide, of a slice of 600.
    fingerprint = measure([(9, 600, 600)] * 3, [(3, 0.5, 0.5)] * 3, voxels=1000, faces=(7, edges // 2, edges // 2))
    bundled = make_plan(fingerprint).configuration("2d").networks["small"]
    assert bundled.input_shape == [size, size]
    assert ("thin structures" in bundled.why["input_shape"]) == (size > 224)


def test_unequal_pixels_give_an_input_in_millimetres():
    fingerprint = measure([(10, 100, 100)] * 3, [(9, 2, 1)] * 3)
    network = make_plan(fingerprint).configuration("2d").networks["small"]
    assert network.input_shape == [224, 112]
    assert network.spacing == pytest.approx(200 / 224)


def test_thick_slices_have_no_neighbours():
    network = make_plan(measure([(10, 64, 64)] * 3, [(10, 1.5, 1.5)] * 3)).configuration("2d").networks["vit_b"]
    assert network.input_channels == "repeat"


def test_four_channels_inside_a_mask():
    fingerprint = measure([(20, 64, 64)] * 3, [(3, 1, 1)] * 3, channels=4, kept=0.4)
    configuration = make_plan(fingerprint, describe(("T1", "T2", "CT", "noNorm"))).configuration("2d")
    assert configuration.normalization == ["zscore", "zscore", "ct", "nonorm"]
    assert configuration.use_mask_for_norm == [True, True, False, False]
    assert configuration.networks["vit_b"].input_channels == "projection"


def in_order(distance, cases=6):
    """Two classes, the second ``distance`` voxels below the first along y in all cases."""
    positions = [{"1": [3.0, 5.0 + index, 4.0], "2": [3.0, 5.0 + index + distance, 4.0]} for index in range(cases)]
    return measure([(36, 50, 35)] * cases, [(1, 1, 1)] * cases, positions=positions)


def test_classes_in_a_fixed_order_are_not_mirrored():
    configuration = make_plan(in_order(2.5)).configuration("2d")  # each reaches 1 voxel to both sides
    assert (configuration.mirror_axes, configuration.rotation) == ([1], 30)
    assert "'a' always comes before 'b' along y" in configuration.why["mirror_axes"]
    assert "'b' always comes before 'a'" in make_plan(in_order(-2.5)).configuration("2d").why["mirror_axes"]
    assert make_plan(in_order(1.5)).configuration("2d").mirror_axes == [0, 1]
    assert make_plan(in_order(2.5, cases=4)).configuration("2d").mirror_axes == [0, 1]


def test_images_of_one_orientation_are_not_mirrored():
    def planned(asymmetry, cases=5):
        fingerprint = measure([(36, 50, 35)] * cases, [(1, 1, 1)] * cases, asymmetry=asymmetry)
        configuration = make_plan(fingerprint).configuration("2d")
        return configuration.mirror_axes, configuration.rotation

    assert planned((0.5, 0.05, 0.04)) == ([1], 30)
    assert planned((0.5, 0.3, 0.3)) == ([], 30)
    assert planned((0.5, 0.0, 0.0)) == ([0, 1], 180)
    assert planned((0.5, 0.3, 0.3), cases=4) == ([0, 1], 180)


def test_left_and_right_are_not_mirrored():
    assert make_plan(description=describe(labels=("background", "eye_l", "eye_r"))).configuration("2d").mirror_axes == [
        0
    ]


def test_colour_pictures():
    fingerprint = measure([(1, 300, 400), (1, 352, 352), (1, 288, 384)], [(1, 1, 1)] * 3, False, 3, 255.0)
    plans = make_plan(fingerprint, describe(("R", "G", "B"), ending=".png"))
    configuration = plans.configuration("2d")
    assert not plans.physical_spacing
    assert plans.image_reader == "NaturalImage2DIO"
    assert plans.transpose_forward == [0, 1, 2]
    assert configuration.spacing is None
    assert configuration.median_shape == [1, 300, 384]
    assert configuration.normalization == ["divide_by_255"] * 3
    for network in configuration.networks.values():
        assert network.spacing is None
        assert network.input_channels == "as_they_are"
    assert configuration.networks["small"].input_shape == [176, 224]  # 300 / 384 of 224 are 175 px
    assert configuration.networks["vit_b"].input_shape == [800, 1024]


@pytest.mark.parametrize("size", [448, 64])
def test_a_given_image_size(size):
    plans = make_plan(measure([(10, 64, 64)] * 3, [(3, 1, 1)] * 3), image_size=size)
    for network in plans.configuration("2d").networks.values():
        assert network.input_shape == [size, size]
        assert network.spacing == pytest.approx(64 / size)
        assert "image_size" in network.why["input_shape"]
    assert list(plans.configurations) == ["2d"]  # none of the smaller sizes is smaller


def test_a_given_encoder():
    for encoder, sam in (("vit_h", "vit_h"), ("vit_t", "vit_t"), ("small", "vit_b"), ("auto", "vit_b")):
        plans = make_plan(encoder=encoder)
        assert plans.encoder == encoder
        networks = plans.configuration("2d").networks
        assert {name: network.encoder for name, network in networks.items()} == {sam: sam, "small": "small"}


def test_a_given_spacing():
    plans = make_plan(target_spacing=[1.0, 2.0, 2.0])
    configuration = plans.configuration("2d")
    # The second axis is the first of the coarsest now; the planes lie in axes 0 and 2.
    assert plans.transpose_forward == [1, 0, 2]
    assert configuration.spacing == [1.0, 2.0]
    assert configuration.median_shape == [50, 36, 18]  # 35, 33 and 36 px halved: 18 (17.5), 16 (16.5) and 18
    assert "target_spacing" in configuration.why["spacing"]
    assert plans.original_median_spacing == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"encoder": "vit_x"}, "no encoder 'vit_x'"),
        ({"image_size": 100}, "`image_size=100` does not fit"),
        ({"gpu_memory_target_gb": 0.0}, "`gpu_memory_target_gb` must be above 0"),
        ({"target_spacing": [1.0, 1.0]}, "three numbers"),
        ({"target_spacing": [1.0, 0.0, 1.0]}, "`target_spacing` must be at least 0.0001"),
        ({"target_spacing": [1.0, float("nan"), 1.0]}, "`target_spacing` must be at least 0.0001"),
        ({"gpu_memory_target_gb": float("inf")}, "`gpu_memory_target_gb` must be above 0"),
        ({"image_size": 1 << 20}, "`image_size` must be above 0 and at most 4096"),
    ],
)
def test_wrong_options(options, expected):
    with pytest.raises(UsageError, match=expected):
        make_plan(**options)


def test_pictures_have_no_target_spacing():
    fingerprint = measure([(1, 300, 400)] * 3, [(1, 1, 1)] * 3, False)
    with pytest.raises(UsageError, match="no physical spacing"):
        make_plan(fingerprint, describe(("gray",), ending=".png"), target_spacing=[1.0, 1.0, 1.0])


def squares():
    return measure([(10, 64, 64)] * 3, [(3, 1, 1)] * 3)


# vit_b, square, one image: 2.17, 1.64, 1.01 and 0.58 GB at 1024, 896, 672 and 448 px; with blocks computed twice 0.88,
# 0.73, 0.51 and, while it is built, 0.37. vit_h at 1024 px 8.3 and 2.7 GB.
@pytest.mark.parametrize(
    ("options", "size", "twice"),
    [
        ({}, 1024, False),
        ({"gpu_memory_target_gb": 2.2}, 1024, False),
        ({"gpu_memory_target_gb": 2}, 1024, True),
        ({"gpu_memory_target_gb": 0.9}, 1024, True),
        ({"gpu_memory_target_gb": 0.8}, 896, True),
        ({"gpu_memory_target_gb": 0.6}, 672, True),
        ({"gpu_memory_target_gb": 0.4}, 448, True),
        ({"gpu_memory_target_gb": 0.1}, 448, True),
        ({"encoder": "vit_h"}, 1024, True),
        ({"encoder": "vit_l"}, 1024, False),
        ({"image_size": 1024, "gpu_memory_target_gb": 0.4}, 1024, True),
        ({"image_size": 672, "gpu_memory_target_gb": 1.1}, 672, False),
        ({"recipe": "samed"}, 512, False),
        ({"recipe": "samed", "gpu_memory_target_gb": 0.6}, 512, True),
        ({"components": "decoder", "gpu_memory_target_gb": 0.3}, 448, False),
        ({"encoder": "vit_t", "gpu_memory_target_gb": 0.3}, 448, False),
    ],
)
def test_the_memory_target_has_blocks_computed_twice_before_it_limits_the_size(options, size, twice):
    network = make_plan(squares(), **options).configuration("2d").networks[options.get("encoder", "vit_b")]
    assert network.input_shape == [size, size]
    assert network.checkpoint_blocks is twice
    assert ("a smaller input would cost accuracy" in network.why["checkpoint_blocks"]) == twice


def test_with_blocks_computed_twice_the_batch_follows_from_what_that_leaves():
    network = make_plan(squares(), gpu_memory_target_gb=2.0).configuration("2d").networks["vit_b"]
    # 0.25 GB and 0.63 for each image: two of them, and three would be 2.13 GB.
    assert (network.batch_size, network.accumulation) == (2, 6)
    assert network.memory_bytes == pytest.approx(0.25e9 + 2 * 0.63e9, rel=0.01)
    assert network.training_gflops == make_plan(squares()).configuration("2d").networks["vit_b"].training_gflops


def test_a_smaller_configuration_need_not_compute_blocks_twice():
    plans = make_plan(squares(), gpu_memory_target_gb=2.0)
    smaller = plans.configuration("2d_896").networks["vit_b"]
    assert plans.configurations["2d_896"]["networks"]["vit_b"]["checkpoint_blocks"] is False
    assert smaller.why["checkpoint_blocks"] == "a step with one image takes 1.64 GB, within 2 GB"
    assert "checkpoint_blocks" not in make_plan(squares()).configurations["2d_896"]["networks"]["vit_b"]


def test_smaller_configurations_inherit_the_rest():
    plans = make_plan()
    assert list(plans.configurations) == ["2d", "2d_896", "2d_672", "2d_448"]
    base = plans.configuration("2d")
    for size in (896, 672, 448):
        assert plans.configurations[f"2d_{size}"]["inherits_from"] == "2d"
        smaller, same_size = plans.configuration(f"2d_{size}"), make_plan(image_size=size).configuration("2d")
        assert smaller.data_identifier == base.data_identifier  # the same stored slices
        assert list(smaller.networks) == ["vit_b"]  # with the small encoder it would be 2d again
        for field in type(base.networks["vit_b"]).model_fields:
            if field != "why":
                own = getattr(smaller.networks["vit_b"], field)
                assert own == getattr(same_size.networks["vit_b"], field), field
        assert max(smaller.networks["vit_b"].input_shape) == size


def test_plans_survive_their_file(tmp_path):
    plans = make_plan(plans_name="mine")
    plans.write(tmp_path / "mine.json")
    assert read_plans(tmp_path / "mine.json") == plans
    assert plans.configuration("2d").data_identifier == "mine_2d"


def test_memory_estimate_grows_as_it_should():
    vit_b = encoder_facts("vit_b")
    large, half = (resources.estimate(vit_b, [side, side], LoraPlan()) for side in (896, 448))
    assert 4 < large.image_bytes / half.image_bytes < 16  # between tokens and pairs of tokens
    assert large.fixed_bytes == half.fixed_bytes
    full = resources.estimate(vit_b, [448, 448], FullPlan())
    # 16 bytes for a trained weight; frozen, 2 for each of 12 blocks of 12 x 768 x 768 and 4 for each position.
    assert full.fixed_bytes - half.fixed_bytes == 12 * 12 * 768**2 * 14 + 64**2 * 768 * 12
    assert full.training_flops > half.training_flops


def test_many_classes_take_memory_at_the_networks_input_size():
    """24 bytes a pixel and class: of 104 classes more, 2.6 GB for an image of 1024 x 1024 px."""
    many = describe(labels=["background", *(f"organ {index}" for index in range(106))])
    few, much = (make_plan(squares(), labels).configuration("2d").networks["vit_b"] for labels in (None, many))
    assert few.batch_size > much.batch_size == 1
    assert few.memory_bytes <= 8e9
    assert 4.5e9 < much.memory_bytes <= 8e9
    # SAMed's loss has a sixteenth of the pixels: at 512 px 0.05 GB.
    assert make_plan(squares(), many, recipe="samed").configuration("2d").networks["vit_b"].batch_size >= 8


def test_flags_for_the_small_encoder_change_none_of_sams_configurations():
    flagged, plain = (make_plan(encoder="small", **flags) for flags in ({"adaptation": "full"}, {}))
    assert list(flagged.configurations) == ["2d", "2d_896", "2d_672", "2d_448"]
    for name in flagged.configurations:
        network = flagged.configuration(name).networks["vit_b"]
        assert network == plain.configuration(name).networks["vit_b"]
        assert network.adaptation == LoraPlan()


@pytest.mark.parametrize(
    ("orientations", "expected", "why"),
    [
        (["RAS", "RAS"], "RAS", "all training images lie so"),
        (["RAS", "LPS"], "LPS", "1 of 2 training images lie so; the others are turned to it"),
        (["RAS", ""], "", "unknown"),
    ],
)
def test_images_are_turned_as_most_training_images_lie(orientations, expected, why):
    fingerprint = measure([(20, 100, 100)] * 2, [(3.0, 1.0, 1.0)] * 2)
    cases = {
        name: case.changed(orientation=orientation)
        for (name, case), orientation in zip(fingerprint.cases.items(), orientations)
    }
    plans = plan("Dataset001_A", describe(), fingerprint.changed(cases=cases), PlannerOptions())
    assert plans.orientation == expected
    assert why in plans.why["orientation"]


def test_a_dataset_of_two_orientations_is_planned_as_if_it_had_one(caplog):
    """Sagittal slices among axial ones: their axes are those of the others once they are turned."""
    places = [{"1": [4.0, 30.0, 60.0], "2": []}] * 5
    axial = measure([(20, 90, 100)] * 5, [(3.0, 1.0, 0.8)] * 5, faces=(10, 20, 40), positions=places)
    cases = {name: case.changed(orientation="LPS") for name, case in axial.cases.items()}
    name, case = next(iter(cases.items()))
    # PSR: x leads backwards, as y of LPS does; y upwards, as its z; z to the right, where its x leads to the left.
    cases[name] = case.changed(
        orientation="PSR",
        spacing=[0.8, 3.0, 1.0],
        shape=[100, 20, 90],
        shape_after_crop=[100, 20, 90],
        class_faces={value: [across, depth, down] for value, (depth, down, across) in case.class_faces.items()},
        class_centres={value: [99 - at[2], at[0], at[1]] if at else [] for value, at in case.class_centres.items()},
        class_spreads={value: [at[2], at[0], at[1]] if at else [] for value, at in case.class_spreads.items()},
    )
    mixed = axial.changed(
        cases=cases,
        spacings=[one.spacing for one in cases.values()],
        shapes_after_crop=[one.shape_after_crop for one in cases.values()],
    )
    turned = turned_fingerprint(mixed, "LPS")
    assert turned.cases[name] == case.changed(orientation="LPS")
    plain = axial.changed(cases={key: one.changed(orientation="LPS") for key, one in axial.cases.items()})
    assert turned == plain
    plans = plan("Dataset001_A", describe(), mixed, PlannerOptions())
    expected = plan("Dataset001_A", describe(), plain, PlannerOptions())
    assert plans.configurations == expected.configurations
    assert (plans.orientation, plans.transpose_forward) == ("LPS", expected.transpose_forward)
    assert (
        f"images of different orientations are turned to LPS in training and prediction, as most lie: PSR: {name}"
        in (caplog.text)
    )


@pytest.mark.parametrize(
    ("shapes", "spacing", "order"),
    [
        ([(48, 64, 1)] * 3, (1, 1, 1), [2, 0, 1]),  # numpy pictures of shape (1, H, W), saved as NIfTI
        ([(1, 64, 48)] * 3, (1, 1, 5), [0, 1, 2]),
        ([(48, 64, 1), (48, 64, 2), (48, 64, 1)], (1, 1, 1), [0, 1, 2]),  # volumes, of which some are thin
    ],
)
def test_pictures_in_a_medical_format_are_not_cut_into_lines(shapes, spacing, order):
    plans = plan("Dataset001_Flat", describe(), measure(shapes, [spacing] * 3), PlannerOptions())
    assert plans.transpose_forward == order


def test_no_input_is_narrower_than_32_pixels():
    plans = plan("Dataset001_Thin", describe(), measure([(9, 300, 5)] * 3, [(4, 1, 1)] * 3), PlannerOptions())
    for network in plans.configuration("2d").networks.values():
        assert min(network.input_shape) == 32
