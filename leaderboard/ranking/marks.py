"""Notes below a board: ranks without a test, images left out, seeds of different versions.

Each line names the entry that it is about, and says what is wrong.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from leaderboard.ranking.analysis import MOST_ENTRIES, Analysis
from leaderboard.ranking.entries import UNTESTED, Entry
from leaderboard.ranking.versions import VERSIONS, mixed, versions
from mixerbench.tracking.keys import Metric

_MOST_LINES = 8  # of one kind
_MOST_NAMES = 3  # in a line


def lines(shown: Sequence[Entry], everyone: Sequence[Entry], analysis: Analysis) -> Iterator[str]:
    """All that there is to say of the entries shown, beside everyone of their board."""
    yield from _short(list(_untested(everyone, analysis)))
    if any(not entry.rank_tested for entry in everyone):
        yield f"{UNTESTED} behind a rank: a pair without a test counts as not told apart"
    yield from _short([line for entry in shown for line in _of_entry(entry)])
    yield from _versions(shown)
    if imported := [entry for entry in shown if entry.imported]:
        yield (
            f"imported from others: {len(imported)} of {len(shown)} entries; what they "
            "claim agrees with what they show; whether they were trained so, no check can tell"
        )


def _untested(everyone: Sequence[Entry], analysis: Analysis) -> Iterator[str]:
    """Why ranks are not tested. Entries that are not shown count too: they are rivals."""
    labels = {entry.key: entry.label for entry in everyone}
    if len(labels) > MOST_ENTRIES:
        yield f"{len(labels)} entries: pairs are tested up to {MOST_ENTRIES}, so no rank is tested"
        return
    if len(labels) > 1 and not analysis.rank_ranges:
        yield "no rank is tested: predictions were not read"
        return
    for key, reason in analysis.missing.items():
        yield f"{labels[key]}: no test of its rank: {reason}"
    positions = {key: position for position, key in enumerate(labels)}
    left = dict(analysis.unlike)
    while left:  # whoever is unlike most others is named first
        counts = Counter(key for pair in left for key in pair)
        key = max(counts, key=lambda key: (counts[key], positions[key]))
        common = {(a if b == key else b): left.pop((a, b)) for a, b in [*left] if key in (a, b)}
        names = [labels[other] for other in sorted(common, key=positions.__getitem__)]
        count, of = max(common.values())
        yield (
            f"{labels[key]}: no test of its rank against {_names(names)}: evaluated on other "
            f"images: {'at most ' if len(names) > 1 else ''}{count} of {of} in common"
        )


def _of_entry(entry: Entry) -> Iterator[str]:
    left_out = {run.seed: run.metrics.get(Metric.UNREADABLE_VAL_IMAGES, 0) for run in entry.runs}
    if seeds := [f"seed {seed}: {count:.0f}" for seed, count in left_out.items() if count]:
        yield (
            f"{entry.label}: validation images that could not be read and are left out of its "
            f"accuracy: {', '.join(seeds)}"
        )
    differences = mixed(entry.runs)
    packages = [_of_package(name, differences[name]) for name in VERSIONS if name in differences]
    if packages:
        yield f"{entry.label}: its seeds mix versions: {'; '.join(packages)}"
    if len(commits := differences.get("commit", ())) > 1:
        yield f"{entry.label}: its seeds mix commits: {', '.join(c[:8] for c in commits)}"
    if "uncommitted changes" in differences:
        yield f"{entry.label}: some of its seeds, but not all, were run with uncommitted changes"


def _versions(entries: Iterable[Entry]) -> Iterator[str]:
    found = versions(run for entry in entries for run in entry.runs)
    if several := [_of_package(*one) for one in found.items() if len(one[1]) > 1]:
        yield f"versions on this board: {'; '.join(several)}"


def _of_package(name: str, values: Sequence[str]) -> str:
    return f"{name} {_names(values)}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _short(found: Sequence[str]) -> Iterator[str]:
    yield from found[:_MOST_LINES]
    if len(found) > _MOST_LINES:
        yield f"… and {len(found) - _MOST_LINES} more such lines"
