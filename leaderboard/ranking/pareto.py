"""Which entries nobody beats in both: cheaper and at least as accurate."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other dominates, the lowest cost first.

    A point dominates another if it costs no more, is at least as accurate, and is better in one.

    Args:
        points: (cost, accuracy).
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept
