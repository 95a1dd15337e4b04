"""Against published worked examples, against scipy and statsmodels, and against plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

from leaderboard.ranking import statistics
from leaderboard.ranking.pareto import front


def differences(only_a: int, only_b: int, both: int = 5) -> np.ndarray:
    return np.repeat([1, -1, 0], [only_a, only_b, both])


# --- one number ---------------------------------------------------------------------------------


def test_wilsons_interval_is_that_of_a_published_example():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263, Wilson without correction.
    low, high = statistics.wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = statistics.wilson_interval(0, 20)  # the same table: 0 of 20
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


def test_the_interval_over_seeds_is_students():
    values = [80.1, 81.7, 79.4]
    low, high = statistics.seed_interval(values)
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    # t of 2 degrees is 4.303: by hand
    half = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)
    assert high - low == pytest.approx(2 * half, rel=1e-6)


# --- two entries --------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_with_one_run_each_the_image_test_is_mcnemars_exact_one(only_a: int, only_b: int):
    table = [[10, only_a], [only_b, 10]]
    expected = mcnemar(table, exact=True).pvalue if only_a + only_b else 1.0
    assert statistics.image_test(differences(only_a, only_b)) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_test_of_a_published_example():
    # Agresti, Categorical Data Analysis (1990), table 10.1: 150 and 86 changed their mind.
    assert statistics.image_test(differences(150, 86)) < 0.0001
    # Siegel and Castellan's 8 against 2: exact two-sided binomial 0.109375.
    assert statistics.image_test(differences(8, 2)) == pytest.approx(0.109375)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=11))
def test_with_several_runs_it_is_the_exact_sign_flip_test(values: list[int]):
    observed = abs(sum(values))
    signs = itertools.product((-1, 1), repeat=len(values))
    sums = [abs(sum(s * v for s, v in zip(sign, values, strict=True))) for sign in signs]
    expected = sum(total >= observed for total in sums) / len(sums)
    assert statistics.image_test(np.array(values)) == pytest.approx(expected, abs=1e-9)


def test_of_very_many_images_the_normal_distribution_is_taken_and_agrees(
    monkeypatch: pytest.MonkeyPatch,
):
    values = np.repeat([3, 2, 1, -1, -2, -3], [400, 500, 900, 880, 460, 350])
    exact = statistics.image_test(values)
    monkeypatch.setattr(statistics, "_EXACT_UP_TO", 0)
    assert statistics.image_test(values) == pytest.approx(exact, rel=0.05)
    assert 0 < exact < 0.05


def test_the_seed_test_with_equal_groups_is_fishers_of_an_analysis_of_variance():
    groups = [[90.1, 91.3, 89.4], [92.0, 92.9, 91.2], [85.0, 86.1, 84.2]]
    noise = statistics.seed_noise(groups)
    assert noise is not None
    within = sum(np.var(group, ddof=1) * 2 for group in groups) / 6
    assert noise == pytest.approx((within, 6))
    a, b = groups[0], groups[1]
    assert max(np.var(a, ddof=1), np.var(b, ddof=1)) > within * 0.9  # near the pooled one
    t = abs(np.mean(a) - np.mean(b)) / math.sqrt(
        max(2 * within / 3, (np.var(a, ddof=1) + np.var(b, ddof=1)) / 3)
    )
    assert statistics.seed_test(a, b, noise) == pytest.approx(2 * stats.t.sf(t, 6))


def test_two_that_scatter_more_than_the_board_are_judged_by_their_own_scatter():
    wild = ([80.0, 90.0, 85.0], [84.0, 94.0, 89.0])
    calm = [[50.0, 50.1, 50.2]] * 20
    noise = statistics.seed_noise([*wild, *calm])
    assert noise is not None
    own = stats.ttest_ind(*wild).statistic
    assert statistics.seed_test(*wild, noise) == pytest.approx(
        2 * stats.t.sf(abs(own), noise.degrees)
    )


def test_a_single_seed_is_judged_by_the_scatter_of_the_others():
    noise = statistics.seed_noise([[90.0, 91.0], [70.0]])
    assert noise == (0.5, 1)
    t = abs(90.5 - 70.0) / math.sqrt(0.5 * 1.5)
    assert statistics.seed_test([90.0, 91.0], [70.0], noise) == pytest.approx(2 * stats.t.sf(t, 1))
    assert statistics.seed_noise([[90.0], [70.0]]) is None
    still = statistics.SeedNoise(0.0, 2)
    assert statistics.seed_test([1.0, 1.0], [1.0, 1.0], still) == 1.0
    assert statistics.seed_test([1.0, 1.0], [2.0, 2.0], still) == 0.0


def test_the_paired_bootstrap_covers_as_often_as_it_says():
    random = np.random.default_rng(1)
    difficulty = random.uniform(0.4, 1.0, size=20_000)  # of all images there are
    truth, hits, trials = 0.05, 0, 200
    for _ in range(trials):
        chance = random.choice(difficulty, 300)
        a, b = (
            np.array([random.random(300) < chance - drop - random.normal(0, 0.02)
                      for _ in range(3)])
            for drop in (0.0, truth)
        )  # fmt: skip
        low, high = statistics.paired_bootstrap(a, b)
        hits += low <= truth <= high
    assert 0.88 <= hits / trials <= 1.0


def test_the_bootstrap_of_one_run_each_is_scipys():
    random = np.random.default_rng(3)
    a, b = random.random((1, 400)) < 0.9, random.random((1, 400)) < 0.8
    ours = statistics.paired_bootstrap(a, b)
    theirs = stats.bootstrap(
        (a[0].astype(float) - b[0],), np.mean, method="percentile", rng=0, n_resamples=4000
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert statistics.paired_bootstrap(a, b) == ours  # the same every time
    assert statistics.paired_bootstrap(b, a) == pytest.approx((-ours.high, -ours.low), abs=0.006)


def test_seeds_that_disagree_widen_the_bootstrap():
    random = np.random.default_rng(4)
    b = random.random((3, 500)) < 0.8
    alike = np.array([random.random(500) < 0.85] * 3)
    apart = np.array([random.random(500) < chance for chance in (0.75, 0.85, 0.95)])
    narrow, wide = (statistics.paired_bootstrap(a, b) for a in (alike, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


# --- a board ------------------------------------------------------------------------------------


def test_holms_correction_of_a_published_example():
    # Holm's steps by hand, on p = .01, .04, .03, .005: 4 x .005, 3 x .01, 2 x .03, and .06 again.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


def test_an_entry_shares_ranks_with_all_it_does_not_differ_from():
    # A beats C and D; B beats D; nothing else is beyond chance.
    differ = dict.fromkeys(itertools.combinations(range(4), 2), False)
    differ |= {(0, 2): True, (0, 3): True, (1, 3): True}
    assert statistics.rank_ranges([90, 89, 85, 80], differ) == [(1, 2), (1, 3), (2, 4), (3, 4)]
    nothing = dict.fromkeys(differ, False)
    assert statistics.rank_ranges([90, 89, 85, 80], nothing) == [(1, 4)] * 4
    everything = dict.fromkeys(differ, True)
    assert statistics.rank_ranges([80, 90, 85, 89], everything) == [(4, 4), (1, 1), (3, 3), (2, 2)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_no_other_dominates(points: list[tuple[int, int]]):
    def dominated(i: int) -> bool:
        return any(
            cost <= points[i][0] and top1 >= points[i][1] and (cost, top1) != points[i]
            for cost, top1 in points
        )

    found = front([(float(cost), float(top1)) for cost, top1 in points])
    assert sorted(found) == [i for i in range(len(points)) if not dominated(i)]
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


# --- predictions --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_the_calibration_error_is_that_of_a_plain_loop(count: int, seed: int):
    random = np.random.default_rng(seed)
    confidence, correct = random.random(count), random.random(count) < 0.7
    found = statistics.calibration(confidence, correct)
    error = 0.0
    for b in range(statistics.BINS):
        inside = [
            i for i, c in enumerate(confidence)
            if b / statistics.BINS < c <= (b + 1) / statistics.BINS
        ]  # fmt: skip
        if inside:
            gap = np.mean(correct[inside]) - np.mean(confidence[inside])
            error += len(inside) / count * abs(gap)
    assert found.error == pytest.approx(error, abs=1e-12)
    assert sum(found.share) == pytest.approx(1)


def test_perfect_calibration_has_no_error_and_overconfidence_has_all_of_it():
    confidence = np.full(100, 0.7)
    assert statistics.calibration(confidence, np.arange(100) < 70).error == pytest.approx(0)
    assert statistics.calibration(np.ones(10), np.zeros(10, bool)).error == 1.0


def test_confusions_are_counted_by_true_class_and_prediction():
    matrix = statistics.confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_error_consistency_is_cohens_kappa():
    random = np.random.default_rng(5)
    a, b = random.random(300) < 0.8, random.random(300) < 0.7
    table = [[sum((a == i) & (b == j)) for j in (False, True)] for i in (False, True)]
    assert statistics.error_consistency(a, b) == pytest.approx(cohens_kappa(table).kappa)
    assert statistics.error_consistency(a, a) == 1.0
    always = np.ones(10, bool)
    assert statistics.error_consistency(always, always) == 1.0
