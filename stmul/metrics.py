"""How good scores are: accuracies, their uncertainty, and which class is taken for which. Numpy alone.

N clips, K classes. Scores are any numbers of which the highest wins; of equal ones the lowest class comes first, as in
`argmax`, so that scores that tell nothing earn nothing. A clip counts once, whatever its length.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shards.draws import key_of, words

Scores = NDArray[np.floating]  # (N, K)
Labels = NDArray[np.integer]  # (N,), 0 .. K-1
DRAWS = 2000  # of a bootstrap
AT_ONCE = 1 << 20  # words drawn


def ranks(scores_NK: Scores, labels_N: Labels) -> NDArray[np.int64]:
    """How many classes come before the true one, (N,): 0 is a hit."""
    own_N1 = np.take_along_axis(scores_NK, labels_N[:, None].astype(np.int64), axis=1)
    first_NK = np.arange(scores_NK.shape[1]) < labels_N[:, None]
    before_NK = (scores_NK > own_N1) | ((scores_NK == own_N1) & first_NK)
    return np.asarray(before_NK.sum(axis=1), dtype=np.int64)


def top(scores_NK: Scores, labels_N: Labels, places: int = 1) -> float:
    """The part of the clips whose true class is among the first `places`, 0 .. 1; all of them when K <= `places`."""
    return float(np.mean(ranks(scores_NK, labels_N) < places))


def confusion_matrix(scores_NK: Scores, labels_N: Labels) -> NDArray[np.int64]:
    """How many clips of each class (row) were taken for each class (column), (K, K)."""
    classes = scores_NK.shape[1]
    cells_N = labels_N.astype(np.int64) * classes + scores_NK.argmax(axis=1)
    return np.bincount(cells_N, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def class_accuracies(scores_NK: Scores, labels_N: Labels) -> NDArray[np.float64]:
    """The part of each class's clips that were hit, (K,); NaN for a class without clips."""
    matrix_KK = confusion_matrix(scores_NK, labels_N)
    clips_K = matrix_KK.sum(axis=1)
    accuracies_K = np.full(len(clips_K), np.nan)
    np.divide(matrix_KK.diagonal(), clips_K, out=accuracies_K, where=clips_K > 0)
    return accuracies_K


def mean_class_accuracy(scores_NK: Scores, labels_N: Labels) -> float:
    """The mean of `class_accuracies` over the classes that have clips: every class weighs the same."""
    return float(np.nanmean(class_accuracies(scores_NK, labels_N)))


def margins(scores_NK: Scores, labels_N: Labels) -> NDArray[np.float64]:
    """The true class's score minus the best other one's, (N,): below 0 is a miss; 0 where there is no other class."""
    own_N1 = np.take_along_axis(scores_NK, labels_N[:, None].astype(np.int64), axis=1).astype(np.float64)
    if scores_NK.shape[1] == 1:
        return np.zeros(len(labels_N))
    other_NK = scores_NK.astype(np.float64)
    np.put_along_axis(other_NK, labels_N[:, None].astype(np.int64), -np.inf, axis=1)
    return np.asarray(own_N1[:, 0] - other_NK.max(axis=1))


def bootstrap(values_N: NDArray[np.floating], groups_N: NDArray[np.integer], seed: int = 0) -> tuple[float, float]:
    """The interval (2.5 % to 97.5 %) of the mean of `values_N` over DRAWS samples of whole groups, with replacement.

    Clips of a group (cut from one source) come and go together, since they resemble each other; groups 0 .. G-1, each
    with at least one clip. Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13. The same
    input and seed give the same interval: the draws are counter-based words.
    """
    sums_G = np.bincount(groups_N, weights=values_N)
    sizes_G = np.bincount(groups_N)
    count, means = len(sums_G), list[NDArray[np.float64]]()
    rows = max(1, AT_ONCE // count)
    for begin in range(0, DRAWS, rows):
        size = min(rows, DRAWS - begin)
        chosen_DG = words(key_of(seed, "bootstrap", begin), size * count).reshape(size, count) % np.uint64(count)
        means.append(sums_G[chosen_DG].sum(axis=1) / sizes_G[chosen_DG].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def wilson_interval(hits: int, clips: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy of `hits` out of `clips`, as (low, high) in 0 .. 1; (0, 1) for no clips.

    It holds for clips drawn independently. Videos cut from one source resemble each other: the truth is less certain.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if clips == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    part = hits / clips
    spread = z * np.sqrt(part * (1.0 - part) / clips + (z / (2.0 * clips)) ** 2)
    scale = 1.0 + z * z / clips
    middle = part + z * z / (2.0 * clips)
    # The ends at no hits and at all hits are 0 and 1 exactly; in floats they could miss by a rounding.
    low = 0.0 if hits == 0 else float(max((middle - spread) / scale, 0.0))
    high = 1.0 if hits == clips else float(min((middle + spread) / scale, 1.0))
    return low, high
