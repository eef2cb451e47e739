"""From history to labelled feature rows, by replaying it through the serving fold."""

from collections.abc import Callable, Iterator

from models.training.dataset import Dataset, Example
from models.training.history import History
from models.training.task import Task


def extract(history: History, task: Task, progress: Callable[[float], None] = lambda _: None) -> Dataset:
    """Every row that `task` sees in `history`. `progress` hears the fraction done."""
    return Dataset.of(list(_examples(history, task, progress)), len(task.features.columns))


def _examples(history: History, task: Task, progress: Callable[[float], None]) -> Iterator[Example]:
    for number, customer in enumerate(history.households):
        yield from task.examples(history, customer)
        if number % 50 == 0:
            progress(number / len(history.households))
    progress(1.0)
