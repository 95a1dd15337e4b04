"""The figures that results are compared by, a row each.

Columns of tables and files, MLflow's views, the axes and lists of the pages, the glossary in the
docs and the limits of what a run may claim all derive from these rows. A metric whose name begins
with ``measure/`` is logged by itself: the field of `mixerbench.measure.model_costs.Measures` that
has the figure's name holds its value.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal, NamedTuple

from mixerbench.tracking.keys import Metric

MEASURED_BY_ITSELF: Final = "measure/"
"""Beginning of the keys of what is measured of a model, apart from its training."""

TOLERANCE: Final = 1e-6
"""Of a percentage or a probability that is computed anew."""


class Bound(NamedTuple):
    """The values that a metric can have."""

    words: str
    low: float = 0.0
    high: float = math.inf
    above: bool = False  # is low itself too low?
    integer: bool = False

    def fits(self, value: float) -> bool:
        """False for NaN."""
        is_in = self.low < value if self.above else self.low <= value
        return is_in and value <= self.high and (not self.integer or value == int(value))


PERCENT: Final = Bound("0 to 100", high=100 + TOLERANCE)
ABOVE_ZERO: Final = Bound("numbers above 0", above=True)
ZERO_OR_MORE: Final = Bound("0 or more")
COUNT: Final = Bound("whole numbers from 1", low=1, integer=True)
COUNT_OR_NONE: Final = Bound("whole numbers from 0", integer=True)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a result, and all that is to be known for showing it."""

    key: str  # of the metric that is logged
    header: str
    unit: str  # "": none
    format: str  # of Python, without the unit
    better: Literal["high", "low"]
    bound: Bound
    meaning: str  # a part of a sentence, for those who ask
    _: KW_ONLY
    per_machine: bool = False
    """It depends on the hardware: shown for one at a time, never averaged over several."""
    is_cost: bool = False
    """Accuracy may be bought with it: an axis of the plot of fronts, on a logarithmic scale."""
    shown_at_first: bool = True
    """On a board's page; else its column is there when a reader asks for it."""
    priority: int | None = 5
    """A narrow terminal drops the columns of the lowest priority first; None: never."""

    @property
    def name(self) -> str:
        """In ``--sort``, JSON, data frames and addresses of pages: ``latency_ms``."""
        return self.key.rpartition("/")[2]

    @property
    def title(self) -> str:
        """Header with unit: ``latency (ms)``."""
        return f"{self.header} ({self.unit})" if self.unit else self.header

    @property
    def is_measured(self) -> bool:
        """By a measurement that may be repeated on another machine, with quartiles."""
        return self.per_machine and self.key.startswith(MEASURED_BY_ITSELF)


# fmt: off
HEADLINE: Final = Figure(
    Metric.FINAL_TOP1, "top-1", "%", ".2f", "high", PERCENT,
    "accuracy on the validation images, weights of the last epoch; the board ranks by its mean "
    "over seeds", priority=None)
"""What a board ranks by."""

FIGURES: Final = (
    HEADLINE,
    Figure(Metric.FINAL_TOP5, "top-5", "%", ".2f", "high", PERCENT,
           "images whose class is among the five most probable ones",
           shown_at_first=False, priority=6),
    Figure(Metric.FINAL_EMA_TOP1, "EMA top-1", "%", ".2f", "high", PERCENT,
           "top-1 of the exponential moving average of the weights",
           shown_at_first=False, priority=11),
    Figure(Metric.PARAMETERS, "parameters", "", ",.0f", "low", COUNT,
           "number of trainable weights",
           is_cost=True, priority=None),
    Figure(Metric.GMACS, "GMACs", "multiply-adds", ".3f", "low", ABOVE_ZERO,
           "10⁹ multiply-adds of one image's forward pass; papers call them GFLOPs",
           is_cost=True, priority=12),
    Figure(Metric.IMAGES_PER_SECOND, "inference", "images/s", ",.1f", "high", ABOVE_ZERO,
           "forward passes in batches, median",
           per_machine=True, is_cost=True, priority=13),
    Figure(Metric.LATENCY_MS, "latency", "ms", ".2f", "low", ABOVE_ZERO,
           "forward pass of one image, median",
           per_machine=True, is_cost=True, shown_at_first=False, priority=1),
    Figure(Metric.MEMORY_MIB, "training memory", "MiB", ",.0f", "low", ABOVE_ZERO,
           "peak of one training step, weights included",
           per_machine=True, is_cost=True, priority=9),
    Figure(Metric.JOULES_PER_IMAGE, "energy", "J/image", ".4f", "low", ABOVE_ZERO,
           "of a forward pass, where the hardware reports it",
           per_machine=True, is_cost=True, shown_at_first=False, priority=8),
    Figure(Metric.TRAINING_SECONDS, "training time", "s", ",.0f", "low", ZERO_OR_MORE,
           "validation and measuring not included",
           per_machine=True, is_cost=True, shown_at_first=False, priority=7),
)
# fmt: on

BY_KEY: Final = {figure.key: figure for figure in FIGURES}
MEASURED: Final = tuple(figure.key for figure in FIGURES if figure.is_measured)
"""Keys of what depends on the machine and is measured apart from training."""
