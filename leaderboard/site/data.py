"""What the page's scripts are given, as plain data: numbers, names, curves, comparisons.

Everything that comes from a run is anybody's writing. It is data here and text in the browser,
never markup: `script` is how it gets into a page.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from leaderboard.ranking.board import Board
from leaderboard.ranking.columns import COLUMNS, Column
from leaderboard.ranking.entries import Entry
from leaderboard.reading.curves import Curves
from leaderboard.reading.predictions import read_predictions
from leaderboard.reading.results import TrainedRun, newest
from leaderboard.reading.source import Source, read_artifact
from leaderboard.render import cell
from leaderboard.site.answers import Answers, answers_of
from leaderboard.site.numbers import short, shorts
from leaderboard.text import plain
from mixerbench.tracking.figures import HEADLINE
from mixerbench.tracking.keys import Artifact, Hardest, Metric
from mixers.core.errors import Refusal

MOST_POINTS = 600  # of one metric's curves on an entry's page, all seeds together
MOST_HARDEST = 12  # images of an entry, as many as a run keeps
MOST_UNSEEN = 4  # of them where pictures are left out
MOST_HARDEST_BYTES = 1_000_000  # of their file: a run's has some 50,000
FEW = 40  # entries: with more, curves and pictures are thinned, so that the site stays small
NAME_LENGTH = 80  # of what is shown of a name that a run was given
CURVES = {
    "val_top1": (Metric.VAL_TOP1, "top-1 (%)"),
    "ema_top1": (Metric.EMA_TOP1, "EMA top-1 (%)"),
    "val_loss": (Metric.VAL_LOSS, "validation loss"),
    "train_loss": (Metric.TRAIN_LOSS, "training loss"),
    "learning_rate": (Metric.LEARNING_RATE, "learning rate"),
}
CURVE_AXES = {"epoch": "epoch", "images": "images seen", "seconds": "training time (s)"}


@dataclass(frozen=True, slots=True)
class Details:
    """What the pages show of an entry besides the numbers of its row."""

    answers: Answers | None  # None: it has no usable predictions
    curves: Mapping[str, Curves]  # run id -> its curves
    hardest: tuple[Mapping[str, Any], ...]  # of the newest run, the hardest first
    class_names: Mapping[int, str]  # those that the hardest images tell


def script(content: Any) -> str:
    """JSON that is safe inside HTML and JavaScript: no character in it ends a script."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPES)


_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def name(text: str) -> str:
    """A name that anybody may have chosen, as one short line."""
    text = plain(text)
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"


def has_few(board: Board) -> bool:
    """Whether the board is so small that its pages show all details of each entry."""
    return len(board.entries) <= FEW


def read_details(source: Source, board: Board, entry: Entry) -> Details:
    predictions = read_predictions(source, entry.runs)
    hardest = _hardest(source, newest(entry.runs))
    number, name_of = (Hardest.TARGET, Hardest.TOP1), (Hardest.TARGET_NAME, Hardest.TOP1_NAME)
    return Details(
        answers=answers_of(predictions) if predictions else None,
        curves={run.run_id: source.curves(run) for run in entry.runs},
        hardest=hardest if has_few(board) else _without_pictures(hardest),
        class_names={
            row[key]: name(row[text])
            for row in hardest
            for key, text in zip(number, name_of, strict=True)
        },
    )


def class_names(details: Mapping[str, Details]) -> dict[int, str]:
    """Names of the classes, as far as any entry of the board tells them."""
    return {
        number: text for detail in details.values() for number, text in detail.class_names.items()
    }


def board_data(
    board: Board,
    details: Mapping[str, Details],
    hrefs: Mapping[str, str],
    looks: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The data of a board's page. ``comparisons`` are in the order of pairs of ``entries``."""
    numeric = [column for column in board.columns if column.format != "s"]
    few = has_few(board)
    points, keys = _extent(few)
    return {
        "protocol": name(board.protocol),
        "fingerprint": board.fingerprint,
        "columns": [_column(column) for column in numeric],
        "headline": HEADLINE.name,
        "headlineHeader": HEADLINE.header,
        "hiddenAtFirst": [c.name for c in COLUMNS if not c.shown_at_first] + ["family"],
        "curves": {key: label for key, (_, label) in CURVES.items()},
        "curveAxes": CURVE_AXES,
        "imagesPerEpoch": images_per_epoch(board.entries, details),
        "classNames": class_names(details),
        "entries": [
            {
                "id": entry.key,
                "label": name(entry.label),
                "mixer": name(entry.mixer),
                "size": name(entry.size),
                "backbone": name(entry.backbone),
                "stem": name(entry.stem),
                "ranks": entry.ranks,
                "href": hrefs[entry.key],
                "values": {c.name: short(entry.value(c)) for c in numeric},
                "texts": {c.name: cell(entry, c) for c in numeric},
                "intervals": {
                    column.name: [short(value) for value in interval]
                    for column in numeric
                    if (interval := entry.interval(column))
                },
                "ranges": {
                    column.name: " – ".join(format(value, column.format) for value in interval)
                    for column in numeric
                    if (interval := entry.interval(column))
                },
                "curves": mean_curves(entry, details[entry.key].curves, points, keys),
                **_for_plots(details[entry.key], len(board.entries)),
                **looks[entry.key],
            }
            for entry in board.entries
        ],
        "comparisons": _comparisons(board, with_parts=few),
    }


def mean_curves(
    entry: Entry, curves: Mapping[str, Curves], points: int, keys: Iterable[str] = CURVES
) -> dict[str, dict[str, list[float]]]:
    """For each metric the mean over seeds and the range, against epochs and training time.

    The third of `CURVE_AXES`, images, is a multiple of epochs.
    """
    import numpy as np

    runs = [run for run in entry.runs if curves[run.run_id]]
    found = {}
    for key in keys:
        metric = CURVES[key][0]
        series = [dict(curves[run.run_id].get(metric, ())) for run in runs]
        if not series or not all(series):
            continue
        steps = np.array(sorted(set.intersection(*(set(values_at) for values_at in series))))
        if not len(steps):
            continue
        if len(steps) > points:
            steps = steps[np.unique(np.linspace(0, len(steps) - 1, points).round().astype(int))]
        values = np.array([[values_at[step] for step in steps] for values_at in series])
        found[key] = {"mean": shorts(_mean(values)), **_axes(runs, curves, steps.tolist())}
        if len(runs) > 1:
            found[key]["low"] = shorts(values.min(axis=0))
            found[key]["high"] = shorts(values.max(axis=0))
    return found


def images_per_epoch(entries: Iterable[Entry], details: Mapping[str, Details]) -> float:
    """Images per epoch, computed from a run that logged epochs and images; 0: none did."""
    for entry in entries:
        for run in entry.runs:
            epochs = details[entry.key].curves[run.run_id].get(Metric.EPOCH)
            seen = run.metrics.get(Metric.IMAGES_SEEN)
            if epochs and epochs[-1][1] > 0 and seen:
                return short(seen / epochs[-1][1]) or 0.0
    return 0.0


def _axes(
    runs: Sequence[TrainedRun], curves: Mapping[str, Curves], steps: list[int]
) -> dict[str, list[float]]:
    """Epochs and seconds of training at these optimizer steps."""
    import numpy as np

    axes = {}
    epochs = curves[runs[0].run_id].get(Metric.EPOCH, ())
    if epochs:
        last_step, last_epoch = epochs[-1]
        axes["epoch"] = shorts(np.array(steps) * (last_epoch / max(last_step, 1)))
    clocks = [curves[run.run_id].get(Metric.TRAIN_SECONDS, ()) for run in runs]
    if all(clocks):
        points = [np.array([(0, 0.0), *clock]) for clock in clocks]
        seconds = [np.interp(np.array(steps), clock[:, 0], clock[:, 1]) for clock in points]
        axes["seconds"] = shorts(_mean(seconds))
    return axes


def _mean(values: Any) -> Any:
    """The mean over seeds; infinity where diverged losses overflow."""
    import numpy as np

    with np.errstate(over="ignore"):
        return np.mean(values, axis=0)


def _extent(few: bool) -> tuple[int, tuple[str, ...]]:
    """How many points of a curve, and which curves, a page holds."""
    return (120, tuple(CURVES)) if few else (25, ("val_top1", "train_loss"))


def entry_data(entry: Entry, details: Details, *, few: bool) -> dict[str, Any]:
    """The data of an entry's page: curves of each seed, and the confusion matrix."""
    points, keys = _extent(few)
    points = max(2, min(points, MOST_POINTS // len(entry.runs)))
    curves: dict[str, list[dict[str, Any]]] = {}
    for run in entry.runs:
        run_curves = mean_curves(replace(entry, runs=(run,)), details.curves, points, keys)
        for key, curve in run_curves.items():
            curves.setdefault(key, []).append({"seed": name(run.seed), **curve})
    return {
        "curves": {key: {"label": CURVES[key][1], "runs": runs} for key, runs in curves.items()},
        "axes": CURVE_AXES,
        "imagesPerEpoch": images_per_epoch([entry], {entry.key: details}),
        "confusion": details.answers.confusion if details.answers else [],
        **_for_plots(details, entries=1),
    }


def _for_plots(details: Details, entries: int) -> dict[str, Any]:
    return details.answers.for_plots(entries) if details.answers else {}


def _comparisons(board: Board, *, with_parts: bool) -> list[list[Any] | None]:
    """What the page shows of each pair of entries: (0, 1), (0, 2), ..., (1, 2), ...

    Empty where no two were compared: of 2,000 entries there are two million pairs.

    ``with_parts``: with the p-values of images and of seeds, and not only the corrected one.
    """
    rows: list[list[Any] | None] = []
    if not board.analysis.comparisons:
        return rows
    for a, b in combinations(board.entries, 2):
        comparison = board.analysis.compare(a.key, b.key)
        if comparison is None:
            rows.append(None)
            continue
        parts = (comparison.p_images, comparison.p_seeds) if with_parts else ()
        rows.append(
            [
                *(round(comparison.difference, 2), *(round(end, 2) for end in comparison.interval)),
                *(round(comparison.only_a, 1), round(comparison.only_b, 1)),
                *(
                    round(comparison.agreement, 3),
                    round(comparison.error_consistency, 3),
                    int(comparison.differ),
                ),
                *(short(p, 2) for p in (comparison.p_corrected, *parts)),
            ]
        )
    return rows


def _hardest(source: Source, run: TrainedRun) -> tuple[Mapping[str, Any], ...]:
    """The hardest images as pages show them; empty: the run has no readable file of them."""
    try:
        return read_artifact(source, run, Artifact.HARDEST, _read_hardest) or ()
    except ValueError:  # it cannot be read, or not be fetched
        return ()


def _read_hardest(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The rows of the file.

    Raises:
        Exception: the file holds no hardest images; what exactly depends on its damage.
    """
    import pyarrow.parquet as pq

    if path.stat().st_size > MOST_HARDEST_BYTES:
        raise Refusal("the file is too large")
    with pq.ParquetFile(path) as file:
        rows = next(file.iter_batches(MOST_HARDEST), None)
    return tuple(_hard_image(row) for row in rows.to_pylist()) if rows else ()


def _hard_image(row: Mapping[str, Any]) -> dict[str, Any]:
    content = row[Hardest.THUMBNAIL]
    is_picture = isinstance(content, bytes) and content.startswith(b"\x89PNG\r\n\x1a\n")
    picture = f"data:image/png;base64,{base64.b64encode(content).decode()}" if is_picture else ""
    texts = (Hardest.IMAGE, Hardest.TARGET_NAME, Hardest.TOP1_NAME)
    return {
        **{key: name(str(row[key])) for key in texts},
        **{key: int(row[key]) for key in (Hardest.TARGET, Hardest.TOP1)},
        Hardest.TARGET_PROBABILITY: float(row[Hardest.TARGET_PROBABILITY]),
        Hardest.THUMBNAIL: picture,
    }


def _without_pictures(hardest: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(row | {Hardest.THUMBNAIL: ""} for row in map(dict, hardest[:MOST_UNSEEN]))


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "header": column.header,
        "highFirst": column.high_first,
        "meaning": column.meaning,
        "isCost": column.is_cost,
        "isAxis": column.name not in ("rank", "seeds"),
        "inTables": column.in_tables,
    }
