"""What a run optimises and how its model is judged: loss, evaluation, metrics, chance level.

An objective is a folder here with a class that derives from `Objective`. Its names are known
without torch, so that progress bars and tables can show them.
"""

from mixerbench.config.schema import Protocol
from mixerbench.objectives.classification import Classification
from mixerbench.objectives.objective import Evaluation as Evaluation
from mixerbench.objectives.objective import EvaluationError as EvaluationError
from mixerbench.objectives.objective import Objective as Objective
from mixerbench.objectives.objective import Score as Score

CLASSIFICATION = Classification()


def objective_of(protocol: Protocol) -> Objective:
    """What runs under ``protocol`` optimise; so far all of them classify images."""
    return CLASSIFICATION
