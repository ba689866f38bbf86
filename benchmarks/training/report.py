"""The runs' results as the paper's tables, in markdown; means and standard deviations are over seeds."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any, NamedTuple

Results = dict[str, Any]
NOT_MEASURED = "not measured"


class Table(NamedTuple):
    title: str
    iterations: int  # of the paper's runs
    paper: dict[str, float | None]  # the paper's mIoU by loss, in per cent


TABLE_1 = Table(
    "Table 1: the exponent p of LAL's pooling (the paper's k), 3 where it is not named",
    1_000,
    {"ce": 66.8, "lal5-p1": 70.1, "lal5-p2": 70.9, "lal5": 71.2, "lal5-p5": 70.6},
)
TABLE_2 = Table(
    "Table 2: losses",
    20_000,
    {"ce": 74.6, "center": 74.5, "focal": 70.4, "lal3": 75.7, "lal5": 76.1, "lal7": 75.1, "max-pooling": None},
)


class Score(NamedTuple):
    """In per cent."""

    mean: float
    spread: float | None  # the standard deviation over seeds (n - 1), None for one seed
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + (f" ± {self.spread:.1f}" if self.spread is not None else "")


def score(fractions: Sequence[float]) -> Score:
    values = [100 * fraction for fraction in fractions]
    return Score(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def score_of(results: Results, loss: str, class_index: int | None = None) -> Score | None:
    """mIoU of a loss, or the IoU of a class; None where no run measured it."""
    runs = [run for run in results["runs"] if run["loss"] == loss]
    found = [run["miou"] if class_index is None else run["iou"][class_index] for run in runs]
    measured = [value for value in found if value is not None]
    return score(measured) if measured else None


def format_tables(results: Results) -> str:
    where = results["environment"]
    measured = f"{where['device']}, torch {where['torch']}, {where['date']}"
    setting = f"Task {results['task']}, {results['recipe']['iterations']:,} iterations, {measured}."
    spread = "IoU in per cent on what is held out; mean ± standard deviation over the seeds."
    parts = [setting, spread, *(format_table(table, results) for table in (TABLE_2, TABLE_1))]
    return "\n\n".join([*parts, "\n".join(comparisons(results))]) + "\n"


def format_table(table: Table, results: Results) -> str:
    """The paper's numbers stand beside those of VOC, the only data that they are comparable on."""
    beside_paper = results["task"] == "voc"
    names = results["class_names"]
    header = ["loss", *(["paper, mIoU"] if beside_paper else []), "mIoU", "seeds", *names]
    lines = [header, ["---"] * len(header)]
    for loss, published in table.paper.items():
        overall = score_of(results, loss)
        classes = [score_of(results, loss, index) or "" for index in range(len(names))]
        paper = [published or "not in it"] if beside_paper else []
        count = overall.seeds if overall else 0
        lines.append([results["titles"][loss], *paper, overall or NOT_MEASURED, count, *classes])
    title = table.title + (f"; the paper's after {table.iterations:,} iterations" if beside_paper else "")
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(map(str, line)) + " |" for line in lines)])


def comparisons(results: Results) -> list[str]:
    """What the numbers say about every loss next to cross-entropy."""
    base = score_of(results, "ce")
    lines = []
    for loss in dict.fromkeys([*TABLE_2.paper, *TABLE_1.paper]):
        other = score_of(results, loss)
        if base and other and loss != "ce":
            lines.append(f"- {results['titles'][loss]} is {difference(other, base)}.")
    return ["Next to cross-entropy, in mIoU:", "", *lines] if lines else []


def difference(other: Score, base: Score) -> str:
    points = other.mean - base.mean
    text = f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"
    if other.spread is None or base.spread is None:
        return f"{text}, of one seed: chance is not excluded"
    error = sqrt(other.spread**2 / other.seeds + base.spread**2 / base.seeds)
    verdict = "more" if abs(points) > 2 * error else "not more"
    return f"{text}, {verdict} than twice the standard error of the difference ({error:.1f})"
