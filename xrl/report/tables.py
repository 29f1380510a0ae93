"""Tables of scores: Markdown to read, CSV and JSON to go on with."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xrl.report.baselines import PEOPLE, Baselines, Person
from xrl.report.scores import Curve
from xrl.report.statistics import Estimate, Summary, final_score, human_scores, summarise

Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns. ``notes``: sentences that belong below it.

    An Estimate is one cell in Markdown, and in CSV and JSON three: ``iqm``, ``iqm_low``, ``iqm_high``.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table, numbers to the right, and the notes; ends with a newline."""
        cells = [self.columns, *(tuple(_shown(cell) for cell in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        left = [all(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        rule = [("-" * width if flush else "-" * (width - 1) + ":") for width, flush in zip(widths, left, strict=True)]
        lines = []
        for row in [cells[0], rule, *cells[1:]]:
            padded = [cell.ljust(width) if flush else cell.rjust(width)
                      for cell, width, flush in zip(row, widths, left, strict=True)]
            lines.append(f"| {' | '.join(padded)} |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def csv(self) -> str:
        """The cells unrounded, without the notes; a cell without a value is empty."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self._names())
        writer.writerows(record.values() for record in self._records())
        return file.getvalue()

    def json(self) -> dict[str, Any]:
        """``{"rows": [{column: value}], "notes": [...]}``, of what json.dumps takes."""
        return {"rows": self._records(), "notes": list(self.notes)}

    def _names(self) -> list[str]:
        estimated = [any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.columns))]
        return [f"{column}{part}" for column, three in zip(self.columns, estimated, strict=True)
                for part in (("", "_low", "_high") if three else ("",))]

    def _records(self) -> list[dict[str, Any]]:
        records = []
        for row in self.rows:
            record: dict[str, Any] = dict.fromkeys(self._names())
            for column, cell in zip(self.columns, row, strict=True):
                if isinstance(cell, Estimate):
                    record |= {column: cell.value, f"{column}_low": cell.low, f"{column}_high": cell.high}
                else:
                    record[column] = cell
            records.append(record)
        return records


def score_table(curves: Sequence[Curve], *, frames: float | None = None, baselines: Baselines | None = None) -> Table:
    """A row per task and method: `final_score` of its seeds, at ``frames`` (None: where each ends).

    With ``baselines`` also the mean score normalised by the gamer and by the record, and for each method what that
    comes to over its games. The column ``frames`` says how far all of the seeds got. Raises ConfigError.
    """
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.task, curve.method), []).append(curve)
    rows = [_row(group, frames, baselines) for group in groups.values()]
    columns = ["task", "method", "seeds", "mean", "median", "iqm", "min", "max"]
    notes = ["Score: the mean of a run's last 5 evaluations, that at 0 frames excepted. iqm: interquartile mean. In "
             "brackets: 95% intervals, bootstrapped over seeds."]
    if baselines is not None:
        columns += ["gamer", "record"]
        for method in dict.fromkeys(curve.method for curve in curves):
            rows += _over_games([curve for curve in curves if curve.method == method], frames, baselines)
        notes += ["gamer, record: 0 is random play, 1 the human gamer's score or the human record.", *baselines.notes]
    return Table((*columns, "frames"), tuple(rows), tuple(notes))


def _row(curves: list[Curve], frames: float | None, baselines: Baselines | None) -> tuple[Cell, ...]:
    task = curves[0].task
    scores = [final_score(curve, frames) for curve in curves]
    summary = summarise({task: scores})
    cells: list[Cell] = [task, curves[0].method, len(scores), summary.mean, summary.median, summary.iqm, min(scores),
                         max(scores)]
    if baselines is not None:
        cells += [baselines.normalise(task, summary.mean.value, to) for to in PEOPLE]
    return (*cells, int(min(_reached(curve, frames) for curve in curves)))


def _over_games(curves: list[Curve], frames: float | None, baselines: Baselines) -> list[tuple[Cell, ...]]:
    """Rows with what the normalised scores of one method come to over games."""
    human = human_scores(curves, baselines, frames)
    gamer, record = (_normalised(curves, frames, baselines, to) for to in PEOPLE)
    values: list[tuple[str, Cell, Cell]] = [
        ("median of games", gamer.median, record.median), ("mean of games", gamer.mean, record.mean),
        ("interquartile mean", gamer.iqm, record.iqm),
        ("mean of games, each clipped at 1", None, human.clipped_record_mean)]
    first, reached = curves[0].method, int(min(_reached(curve, frames) for curve in curves))
    games = f"{len(human.games)} game{'s' if len(human.games) != 1 else ''}"
    return [(f"{games}: {name}", first, len(curves), None, None, None, None, None, *pair, reached)
            for name, *pair in values]


def _normalised(curves: list[Curve], frames: float | None, baselines: Baselines, to: Person) -> Summary:
    scores: dict[str, list[float]] = {}
    for curve in curves:
        value = baselines.normalise(curve.task, final_score(curve, frames), to)
        scores.setdefault(curve.task, []).append(value)
    return summarise(scores)


def _reached(curve: Curve, frames: float | None) -> float:
    return max(x for x in curve.xs if frames is None or x <= frames)


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Estimate):
        interval = "" if cell.low is None else f" [{_shown(cell.low)}, {_shown(cell.high)}]"
        return _shown(cell.value) + interval
    if isinstance(cell, float):
        decimals = max(0, 3 - len(f"{abs(cell):.0f}")) if abs(cell) >= 10 else 3
        return f"{round(cell, decimals) + 0.0:,.{decimals}f}"  # + 0.0: no minus before a zero
    return f"{cell:,}" if isinstance(cell, int) else cell.replace("|", "\\|")
