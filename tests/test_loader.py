"""Training batches: repeatable item by item, foreground where it should be, the same with workers."""

import numpy as np
import pytest

from samunet.adaptations import FullPlan
from samunet.plans import ConfigurationPlan, NetworkPlan
from samunet.preprocessing.case import OUTSIDE
from samunet.preprocessing.store import StoredCase, class_locations
from samunet.training.augmentation import (
    AffineWindowTransform,
    BiasFieldTransform,
    MaskOutsideTransform,
    StrongWindowTransform,
    seeded,
    training_transforms,
)
from samunet.training.loader import SliceLoader, batches
from samunet.training.recipes import Recipe


class Record:
    slice_spacing = 3.0
    stored_spacing = (1.0, 1.0)


class CaseInMemory(StoredCase):
    """A stored case without files: one bright square of class 1 in the middle slice, class 2 in its corner."""

    def __init__(self, shape=(5, 40, 48)) -> None:
        super().__init__(folder=None, name="memory")
        label = np.zeros(shape, dtype=np.int16)
        label[2, 18:26, 20:30] = 1
        label[2, 0:4, 0:4] = 2
        self.arrays = {"label": label, "image": label[None].astype(np.float32) + 0.1}
        places = {value: np.argwhere(label == value).astype(np.int32) for value in (1, 2)}
        self.__dict__["class_locations"] = places
        self.__dict__["record"] = Record()

    def __reduce__(self):
        return type(self), (self.shape,)

    @property
    def shape(self):
        return self.arrays["label"].shape

    def image(self, first=0, last=None):
        return self.arrays["image"][:, first:last]

    def label(self, first=0, last=None):
        return self.arrays["label"][first:last]


def make_loader(
    foreground_share=0.33, input_shape=(16, 16), channels="repeat", seed=7, batch_size=4, cases=None, ignore=None,
    masked=False, slices=1, recipe=Recipe, stretch=False, augmentation="standard",
    **changes,
):  # fmt: skip
    network = NetworkPlan(
        encoder="small", input_shape=list(input_shape), spacing=1.0, head="sam", adaptation=FullPlan(),
        input_channels=channels, batch_size=batch_size, accumulation=1, learning_rate=1e-3, weight_decay=0.1,
        training_images={"cpu": 1, "gpu": 1}, memory_bytes=0, training_gflops=0.0, stretch=stretch,
        augmentation=augmentation,
    )  # fmt: skip
    configuration = ConfigurationPlan(
        data_identifier="x", spacing=[1.0, 1.0], median_shape=[5, 40, 48], normalization=["zscore"],
        use_mask_for_norm=[masked], mirror_axes=[0, 1], foreground_share=foreground_share,
        networks={"small": network}, **changes,
    )  # fmt: skip
    cases = cases or {"a": CaseInMemory(), "b": CaseInMemory((4, 30, 30))}
    return SliceLoader(
        cases,
        configuration,
        network,
        batch_size,
        seed,
        ignore=ignore,
        recipe=recipe if slices == 1 else type("Slabs", (recipe,), {"slices": slices}),
    )


def test_batches_depend_on_seed_iteration_and_index_alone():
    first, second = make_loader(), make_loader()
    np.random.seed(99)
    second.batch(0)
    for key in ("data", "seg"):
        assert np.array_equal(first.batch(5)[key], second.batch(5)[key])
    assert not np.array_equal(first.batch(5)["data"], first.batch(6)["data"])
    assert not np.array_equal(first.batch(5)["data"], make_loader(seed=8).batch(5)["data"])


def test_a_larger_batch_begins_with_the_smaller_one():
    small, large = make_loader(batch_size=2).batch(3), make_loader(batch_size=4).batch(3)
    assert np.array_equal(small["data"], large["data"][:2])


def test_shapes_and_types():
    batch = make_loader(channels="neighbours").batch(0)
    assert batch["data"].shape == (4, 3, 16, 16)
    assert batch["data"].dtype == np.float32
    assert batch["seg"].shape == (4, 16, 16)
    assert batch["seg"].dtype == np.int64
    assert batch["seg"].min() >= 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_foreground_share_holds_at_every_batch_size(batch_size):
    """Windows of 8 x 8 px on 40 x 48 px rarely show foreground by chance; a forced one nearly always does."""

    def share(wanted):
        loader = make_loader(foreground_share=wanted, input_shape=(8, 8), batch_size=batch_size)
        return np.mean([item.any() for i in range(240 // batch_size) for item in loader.batch(i)["seg"] == 1])

    # Classes 1 and 2 are drawn equally often for case a; case b has class 1 places inside its slices as well.
    assert share(0.0) < 0.15
    assert share(1.0) > share(0.33) > share(0.0)
    assert share(0.33) == pytest.approx(share(0.0) + 0.33 * (share(1.0) - share(0.0)), abs=0.09)


def test_sparse_annotation_is_always_in_the_window():
    """Of 1920 voxels a slice, nine are annotated as background and one as class 1; the rest has the ignore label 3."""
    case = CaseInMemory((5, 40, 48))
    label = case.arrays["label"]
    label[:] = 3
    label[1, 10:13, 30:33] = 0
    label[3, 20, 5] = 1
    case.__dict__["class_locations"] = class_locations(label, ignore=3)
    loader = make_loader(cases={"a": case}, ignore=3, foreground_share=0.5, input_shape=(8, 8))
    # Rotation and scaling can turn a single voxel out of an 8 x 8 window.
    annotated = [(item != 3).any() for i in range(30) for item in loader.batch(i)["seg"]]
    assert np.mean(annotated) > 0.95
    shown = [(item == 1).any() for i in range(30) for item in loader.batch(i)["seg"]]
    assert np.mean(shown) == pytest.approx(0.5 + 0.5 / 2, abs=0.12)


def test_workers_change_nothing():
    loader = make_loader()
    alone = batches(make_loader(), 3, num_workers=0)
    with_workers = batches(loader, 3, num_workers=1)
    try:
        for _ in range(3):
            assert np.array_equal(next(alone)["data"], next(with_workers)["data"])
    finally:
        with_workers.close()


def test_affine_window_rotates_about_the_centre():
    transform = AffineWindowTransform((9, 9), p_rotation=1, p_scale=1)
    with seeded(1):
        matrix = transform.draw()
    assert np.allclose(matrix @ [4, 4, 1], [4, 4, 1])
    scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    assert 1 / 1.4 <= scale <= 1 / 0.7
    assert np.allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2) * scale**2)


def test_strong_changes_of_shape_stay_within_their_bounds():
    """Area by 0.65 to 1.5 squared; the centre moves by a tenth of the image, as it is turned and scaled."""
    transform = StrongWindowTransform((41, 21), rotation=np.deg2rad(30), p_rotation=0, p_scale=0)
    areas, shifts, still = [], [], 0
    with seeded(2):
        for _ in range(400):
            matrix = transform.draw()
            still += np.array_equal(matrix, np.eye(3))
            areas.append(np.linalg.det(matrix[:2, :2]))
            shifts.append(np.linalg.norm(matrix @ [20, 10, 1] - [20, 10, 1]))
            angle = np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))
            assert abs(angle) <= 30 + 1e-6, "shear acts along rows alone"
    assert 40 < still < 120  # one of five
    assert 1 / 1.5**2 <= min(areas) < 0.6
    assert 1.8 < max(areas) <= 1 / 0.65**2
    assert 2 < max(shifts) <= np.hypot(4.1, 2.1) / 0.65


def test_a_bias_field_is_smooth_and_bounded():
    image = np.linspace(-1, 3, 40 * 30).reshape(1, 1, 40, 30).astype(np.float32)
    image = np.concatenate([image, 2 * image], axis=1)
    with seeded(0):
        changed = BiasFieldTransform(p_per_sample=1, per_channel=False)(data=image)["data"]
    assert changed.dtype == np.float32
    assert changed.shape == image.shape
    least = image.min(axis=(2, 3), keepdims=True)
    inside = image > least
    field = np.log((changed - least)[inside] / (image - least)[inside])
    assert 0.1 < np.abs(field).max() < 0.75  # bicubic interpolation goes a little beyond its points
    first, second = np.split(field, 2)
    assert np.allclose(first, second, atol=1e-4), "one field for all channels"
    assert np.abs(np.diff(field[:29])).max() < 0.1
    same = BiasFieldTransform(strength=0, p_per_sample=1)(data=image)["data"]
    assert np.allclose(same, image, atol=1e-6)
    assert BiasFieldTransform(p_per_sample=0)(data=image)["data"] is image


def test_augmentation_is_as_planned():
    strong, standard = (make_loader(augmentation=kind).transforms[0].transforms for kind in ("strong", "standard"))
    assert isinstance(strong[0], StrongWindowTransform)
    assert any(isinstance(transform, BiasFieldTransform) for transform in strong)
    assert type(standard[0]) is AffineWindowTransform
    assert not any(isinstance(transform, BiasFieldTransform) for transform in standard)


@pytest.mark.parametrize("kind", [AffineWindowTransform, StrongWindowTransform])
def test_image_and_label_move_together(kind):
    transform = kind((32, 32), p_rotation=1, p_scale=1)
    label = np.zeros((1, 1, 32, 32), dtype=np.int16)
    label[0, 0, 10:22, 8:18] = 1
    outside = 0
    for seed in range(10):
        with seeded(seed):
            moved = transform(data=label.astype(np.float32), seg=label, window=np.eye(3))
        assert ((moved["data"][0, 0] > 0.5) == (moved["seg"][0, 0] == 1)).mean() > 0.99
        outside += (moved["seg"] == OUTSIDE).any()
    assert outside > 0


@pytest.mark.parametrize("strong", [False, True])
def test_intensity_augmentation_keeps_the_label(strong):
    transforms = training_transforms((24, 24), [], [], per_channel=True, strong=strong)
    rng = np.random.default_rng(0)
    for index in range(30):
        label = rng.integers(0, 3, (1, 1, 24, 24)).astype(np.int16)
        with seeded(index):
            item = transforms(data=rng.normal(size=(1, 2, 24, 24)), seg=label, window=np.eye(3))
        assert np.isfinite(item["data"]).all()
        assert set(np.unique(item["seg"])) <= {OUTSIDE, 0, 1, 2}


def test_masked_channels_stay_zero_outside():
    seg = np.array([[[[OUTSIDE, 0], [1, OUTSIDE]]]])
    data = np.ones((1, 2, 2, 2))
    masked = MaskOutsideTransform([1])(data=data, seg=seg)["data"]
    assert masked[0, 0].tolist() == [[1, 1], [1, 1]]
    assert masked[0, 1].tolist() == [[0, 1], [1, 0]]


def test_each_neighbour_is_masked_by_its_own_content():
    """All of slice 0, half of slice 1 and a quarter of slice 2 are content; noise must not stay in the rest."""
    case = CaseInMemory((3, 16, 16))
    image, label = case.arrays["image"], case.arrays["label"]
    image[:], label[:] = 5.0, 0
    for z, columns in enumerate((16, 8, 4)):
        label[z, :, columns:], image[0, z, :, columns:] = OUTSIDE, 0
    label[1, 8, 2] = 1
    case.__dict__["class_locations"] = {1: np.array([[1, 8, 2]])}
    loader = make_loader(channels="neighbours", foreground_share=1.0, cases={"a": case}, masked=True)
    data = np.concatenate([loader.batch(iteration)["data"] for iteration in range(10)])
    counts = np.count_nonzero(data, axis=(2, 3))
    assert np.median(counts, axis=0).tolist() == [256, 128, 64]  # most items are neither turned nor scaled
    assert loader.batch(0)["seg"].shape == (4, 16, 16)


def test_seeded_leaves_the_global_generator_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).uniform(size=2)
    first = np.random.uniform()
    with seeded(1, 2, 3):
        np.random.uniform(size=10)
    assert [first, np.random.uniform()] == list(expected)
