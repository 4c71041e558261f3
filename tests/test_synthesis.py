"""New training slices of exemplars: what is pasted, where, and that nothing else changes."""

import json

import numpy as np
import pytest
from test_loader import CaseInMemory, make_loader

from samunet import api
from samunet.commands import run_command
from samunet.errors import UsageError
from samunet.plans import SynthesisPlan
from samunet.preprocessing.case import OUTSIDE
from samunet.training.synthesis import (
    Bank,
    Exemplar,
    Synthesis,
    carve_mix,
    exchange_organ,
    paste_lesion,
    planned_share,
)

BODY, LIVER, LESION = (slice(8, 88), slice(8, 88)), (slice(20, 76), slice(14, 60)), 2


def exemplar(seed, lesions=((40, 30),), ignore=None):
    """A body with a liver (1) and lesions (2) of 6 x 6 pixels in it; 0 beyond the body, or unknown with ``ignore``."""
    rng = np.random.default_rng(seed)
    label = np.zeros((96, 96), np.int16)
    label[LIVER] = 1
    for y, x in lesions:
        label[y : y + 6, x : x + 6] = LESION
    image = np.zeros((2, 96, 96), np.float32)
    image[:, *BODY] = 1 + rng.normal(0, 0.05, (2, 80, 80))
    image[:, label == 1] += 1
    image[:, label == LESION] += 3
    if ignore is not None:
        label[80:, 80:] = ignore
    return Exemplar(image, label, (1.0, 1.0))


def bank(*exemplars, ignore=None):
    return Bank([(number, 0) for number in range(len(exemplars))], lambda place: exemplars[place[0]], ignore)


def unchanged_outside(own, made):
    outside = made.alpha == 0
    assert outside.any()
    assert np.array_equal(made.image[:, outside], own.image[:, outside])
    assert np.array_equal(made.label[outside], own.label[outside])
    assert np.array_equal(made.label[made.alpha < 0.5], own.label[made.alpha < 0.5])
    assert made.image.dtype == np.float32
    assert made.label.dtype == own.label.dtype


def test_small_classes_are_lesions_and_what_surrounds_them_is_known():
    found = bank(exemplar(0), exemplar(1, ((30, 20), (60, 40))))
    assert [lesion.value for lesion in found.lesions] == [LESION] * 3
    assert found.contacts == {LESION: {1}}
    first = found.lesions[0]
    assert first.centre == pytest.approx(((42.5 - 8) / 80, (32.5 - 8) / 80), abs=0.01)
    assert first.inside.sum() == 36


def test_what_is_one_piece_at_the_same_place_in_every_case_is_an_organ():
    at = [(40, 30), (41, 32), (39, 31)]
    assert bank(*(exemplar(seed, [place]) for seed, place in enumerate(at))).lesions == []
    far = [(22, 16), (40, 40), (68, 50)]
    assert len(bank(*(exemplar(seed, [place]) for seed, place in enumerate(far))).lesions) == 3
    two = [[place, (60, 20)] for place in at]
    assert len(bank(*(exemplar(seed, places) for seed, places in enumerate(two))).lesions) == 6


def test_a_component_with_another_class_in_it_is_no_exemplar():
    one = exemplar(0)
    one.label[42:44, 32:34] = 3
    found = bank(one)
    assert [lesion.value for lesion in found.lesions] == [3]
    assert found.contacts == {3: {LESION}}


def test_a_lesion_is_pasted_onto_what_surrounds_it_alone():
    own, found, seen = exemplar(5, lesions=()), bank(exemplar(0)), 0
    make = Synthesis(SynthesisPlan(kinds=["paste"]), found, 1.0)
    for seed in range(30):
        made = make(own, (9, 0), np.random.default_rng(seed))
        if made is None:  # no place was found
            continue
        seen += 1
        unchanged_outside(own, made)
        new = made.label != own.label
        assert set(np.unique(made.label[new])) == {LESION}
        assert (own.label[new] == 1).all()
        assert 36 * 0.3 < new.sum() < 36 * 3
        # It is bright, as it was.
        assert made.image[:, new].mean() > 3
    assert seen > 20


def test_no_lesion_where_it_may_not_lie():
    own = exemplar(5, lesions=())
    own.label[own.label == 1] = 0
    made = [
        Synthesis(SynthesisPlan(kinds=["paste"]), bank(exemplar(0)), 1.0)(own, (9, 0), np.random.default_rng(seed))
        for seed in range(10)
    ]
    assert made == [None] * 10


def test_nothing_is_pasted_over_what_is_unknown():
    own, found = exemplar(5, lesions=(), ignore=3), bank(exemplar(0), ignore=3)
    own.label[own.label == 1] = 3
    lesion = found.lesions[0]
    donor = Exemplar(exemplar(0).image, (exemplar(0).label == LESION).astype(np.int16))
    assert all(
        paste_lesion(own, donor, lesion, {1, 3, OUTSIDE}, 3, np.random.default_rng(seed)) is None for seed in range(5)
    )


def test_an_organ_takes_the_texture_and_keeps_its_place():
    own, donor = exemplar(0, lesions=()), exemplar(1, lesions=())
    texture = np.where(np.indices((96, 96)).sum(0) % 8 < 4, 0.5, -0.5)
    donor.image[:, donor.label == 1] += texture[donor.label == 1]
    made = exchange_organ(own, donor, None, np.random.default_rng(0))
    unchanged_outside(own, made)
    assert np.array_equal(made.label, own.label)
    inside = made.alpha == 1
    assert np.allclose(made.image[0][inside].std(), 0.5, atol=0.15)
    assert np.allclose(made.image[0][inside].mean(), own.image[0][inside].mean(), atol=0.15)
    assert exchange_organ(exemplar(0), Exemplar(own.image, np.zeros_like(own.label)), None, None) is None


def test_carving_takes_the_foreground_with_its_labels():
    own, donor = exemplar(0, lesions=()), exemplar(1)
    own.label[:] = 0
    for seed in range(10):
        made = carve_mix(own, donor, None, np.random.default_rng(seed))
        unchanged_outside(own, made)
        taken = made.alpha >= 0.5
        assert np.array_equal(made.label[taken], donor.label[taken])
        whole = made.alpha == 1
        assert np.allclose(made.image[:, whole], donor.image[:, whole])
    assert carve_mix(own, Exemplar(own.image, own.label), None, np.random.default_rng(0)) is None


def test_carving_leaves_what_is_unknown_alone_and_fits_other_shapes():
    own, donor = exemplar(0, ignore=3), exemplar(1, ignore=3)
    donor.label[20:40, 14:60], own.label[:, 50:] = 3, OUTSIDE
    for seed in range(10):
        made = carve_mix(own, donor, 3, np.random.default_rng(seed))
        assert (made.label[:, 50:] == OUTSIDE).all()
        assert (made.alpha[20:40, 14:60] == 0).all()
        unchanged_outside(own, made)
    small = Exemplar(donor.image[:, :70, :70], donor.label[:70, :70], (1.0, 1.0))
    made = carve_mix(exemplar(0), small, 3, np.random.default_rng(1))
    unchanged_outside(exemplar(0), made)


def test_the_rule_of_how_often():
    assert [planned_share(None, number) for number in (10, 500, 2750, 5000, 9000)] == [0.5, 0.5, 0.25, 0, 0]
    assert planned_share(0.3, 9000) == 0.3


def with_synthesis(share, kinds=("paste", "exchange", "carve"), **changes):
    loader = make_loader(input_shape=(32, 32), batch_size=8, foreground_share=1.0, **changes)
    loader.network = loader.network.changed(synthesis=SynthesisPlan(share=share, kinds=list(kinds)))
    loader.synthesis = loader._synthesis()
    return loader


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("channels", ["repeat", "neighbours"])
def test_batches_depend_on_seed_iteration_and_index_and_are_the_same_without(channels):
    cases = {"a": CaseInMemory(), "b": CaseInMemory((4, 40, 48))}
    cases["b"].arrays["image"] += np.random.default_rng(0).uniform(0, 1, (1, 4, 40, 48)).astype(np.float32)
    changes = {"channels": channels, "cases": cases, "masked": channels == "neighbours"}
    plain = make_loader(input_shape=(32, 32), batch_size=8, foreground_share=1.0, **changes)
    none, all_, again = (with_synthesis(share, **changes) for share in (0.0, 1.0, 1.0))
    assert none.synthesis is None
    different = 0
    for iteration in range(4):
        assert same(plain.batch(iteration), none.batch(iteration))
        np.random.seed(iteration)
        made = all_.batch(iteration)
        assert same(made, again.batch(iteration))
        different += not same(made, plain.batch(iteration))
    assert different == 4


def test_slabs_are_refused():
    loader = make_loader(slices=3)
    loader.network = loader.network.changed(synthesis=SynthesisPlan(share=0.5))
    with pytest.raises(UsageError, match="several neighbouring"):
        loader._synthesis()


@pytest.mark.parametrize("value", ["often", -0.1, 1.5])
def test_wrong_shares(value):
    with pytest.raises(UsageError, match="synthesis"):
        api.TrainingOptions(synthesis=value)


@pytest.mark.slow
def test_a_training_with_it(samunet_folders, tiny_dataset, capsys):
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    words = ["998", "2d", "0", "--iterations", "4", "--batch_size", "2"]
    assert run_command("samunet_train", [*words, "--synthesis", "auto"]) == 0
    assert "something new in 50% of the images (paste, exchange, carve); pasted are" in capsys.readouterr().err
    run = json.loads(next((samunet_folders / "results").glob("*/*/fold_0/run.json")).read_text())
    assert run["setup"]["synthesis"] == {"share": None, "kinds": ["paste", "exchange", "carve"]}
    assert run_command("samunet_train", [*words, "--overwrite"]) == 0
    run = json.loads(next((samunet_folders / "results").glob("*/*/fold_0/run.json")).read_text())
    assert run["setup"]["synthesis"] is None
    capsys.readouterr()
    assert run_command("samunet_train", [*words, "--overwrite", "--synthesis", "2"]) == 2
    assert "--synthesis must be" in capsys.readouterr().err
