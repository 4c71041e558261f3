"""The choice among images without labels, on pools whose right answer is worked out by hand."""

import math

import numpy as np
import pytest

from samunet.selection.ranking import (
    Pool,
    choose_uncertain,
    entropy_and_class_scores,
    gumbel_noise,
    k_centre,
    noise_beta,
    random_foreground,
    standardised,
    strata,
)


def pool(entropy, class_scores, shown=None, embeddings=None, known=()):
    number = len(entropy)
    scores = np.array(class_scores, float)
    embeddings = np.zeros((number, 1)) if embeddings is None else np.array(embeddings, float)
    return Pool(
        np.array(entropy, float),
        scores,
        np.ones(scores.shape, bool) if shown is None else np.array(shown, bool),
        embeddings,
        np.array(known, float).reshape(-1, embeddings.shape[1]),
    )


def chosen(choices):
    return [choice.index for choice in choices]


def test_entropy_and_class_scores_of_three_classes():
    entropy, scores = entropy_and_class_scores(np.array([0.7, 0.2, 0.1]))
    assert entropy == pytest.approx(0.801819, abs=1e-6)
    assert scores == pytest.approx([0.561273, 0.160364, 0.080182], abs=1e-6)


def test_certain_pixels_have_no_entropy():
    entropy, scores = entropy_and_class_scores(np.array([[1.0], [0.0]]))
    assert entropy == 0
    assert (scores == 0).all()


def test_entropies_of_regions_add_up():
    entropy, scores = entropy_and_class_scores(np.array([0.5, 0.5]), regions=True)
    assert entropy == pytest.approx(2 * math.log(2))
    assert scores == pytest.approx([math.log(2)] * 2)


def test_noise_fades_geometrically():
    assert [noise_beta(number, 5) for number in range(1, 6)] == pytest.approx([1, 3.1623, 10, 31.623, 100], rel=1e-4)
    drawn = gumbel_noise((20000,), 3, 5, np.random.default_rng(0))
    assert drawn.std() == pytest.approx(1.2825 / 10, rel=0.03)
    assert not gumbel_noise((5,), 1, 1, np.random.default_rng(0)).any()


def test_two_thirds_are_divided_evenly_over_the_classes():
    turns = strata(50, [2, 0, 1])
    assert len(turns) == 50
    assert [turns.count(one) for one in (0, 1, 2, None)] == [11, 11, 11, 17]
    assert strata(3, [1, 0]) == [1, 0, None]
    assert strata(4, []) == [None] * 4


def test_order_of_doubt_where_all_look_alike():
    # Class 1 is shown least, so it comes first; then class 0, and last by all doubt.
    found = choose_uncertain(
        pool(
            [0.1, 0.9, 0.3, 0.5],
            [[0.05, 0.01], [0.30, 0.02], [0.01, 0.20], [0.40, 0.05]],
            shown=[[1, 0], [1, 0], [0, 1], [1, 0]],
        ),
        3,
        np.zeros((4, 3)),
    )
    assert chosen(found) == [2, 3, 1]
    assert [choice.stratum for choice in found] == [1, 0, None]
    assert math.isnan(found[0].distance)
    assert found[1].distance == 0


def test_among_the_doubtful_what_is_unlike_the_labelled_comes_first():
    doubt = [0.5, 0.9, 0.8, 0.7, 0.6]
    found = choose_uncertain(
        pool(doubt, np.zeros((5, 0)), np.zeros((5, 0)), [[9], [0], [1], [5], [6]], known=[[0]]), 1, np.zeros((5, 1))
    )
    assert chosen(found) == [3]  # of the three most doubtful, at 0, 1 and 5; not the one at 9
    assert found[0].distance == 5


def test_a_rare_class_is_among_the_first():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 0.2, (40, 3))
    scores[:, 2], shown = 1e-6, np.ones((40, 3), bool)
    scores[17, 2], shown[:, 2] = 1e-3, False
    shown[17, 2] = True
    found = choose_uncertain(pool(scores.sum(1), scores, shown), 6, np.zeros((40, 4)))
    assert found[0].index == 17
    assert found[0].stratum == 2
    assert len(set(chosen(found))) == 6


def test_k_centre_by_hand():
    points = np.array([[0.0], [1.0], [4.0], [10.0]])
    assert chosen(k_centre(points, np.array([[0.0]]), 3)) == [3, 2, 1]
    assert [choice.distance for choice in k_centre(points, np.array([[0.0]]), 3)] == [10, 4, 1]
    # Without any that is known: the one nearest to the mean, 3.75; then the farthest.
    assert chosen(k_centre(points, np.zeros((0, 1)), 4)) == [2, 3, 0, 1]
    assert sorted(chosen(k_centre(np.zeros((3, 2)), np.zeros((1, 2)), 3))) == [0, 1, 2]


def test_every_third_by_chance_shows_a_class():
    shown = np.zeros((60, 2), bool)
    shown[5, 0] = shown[6, 1] = shown[7, 0] = True
    found = random_foreground(shown, 9, np.random.default_rng(1))
    assert len(set(chosen(found))) == 9
    assert sum(choice.stratum is not None for choice in found) == 3
    assert {5, 6, 7} <= set(chosen(found))
    again = random_foreground(shown, 9, np.random.default_rng(1))
    assert chosen(again) == chosen(found)
    assert sorted(chosen(random_foreground(shown, 60, np.random.default_rng(2)))) == list(range(60))


def test_embeddings_are_standardised_together():
    one, other = standardised(np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[4.0, 5.0]]))
    both = np.concatenate([one, other])
    assert both.mean(0) == pytest.approx([0, 0])
    assert both.std(0) == pytest.approx([1, 0])
