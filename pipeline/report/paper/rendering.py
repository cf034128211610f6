"""The paper's tables as text: cells for the page, Markdown, CSV, a line for the leaderboard."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from pipeline.report.paper.columns import GROUPS, MAESTRO, Column
from pipeline.report.paper.comparison import Comparison
from pipeline.report.paper.tables import ModelRow, Table


def header(table: Table) -> list[str]:
    """Return the names of a table's columns."""
    names = [column.name + (" ↓" if column.is_error else "") for column in table.columns]
    return ["model", "origin", *names, f"mean of {len(table.tasks)} (over random)"]


def cells(table: Table, row: ModelRow) -> Iterator[tuple[str, bool]]:
    """Yield the text of each score and mean of a row, and whether it is among the best."""
    for column in table.columns:
        value = row.scores.get(column.key)
        digits = 4 if value is not None and value < 0.1 and column.task == MAESTRO else 3
        yield ("–" if value is None else f"{value:.{digits}f}"), table.is_top(row, column)
    mean, percent = table.mean(row), table.over_random(row)
    gain = f" ({percent:+.0f} %)" if percent is not None and not row.is_random else ""
    yield ("–" if mean is None else f"{mean:.3f}{gain}"), False


def to_markdown(comparison: Comparison) -> str:
    """Return the tables for a README or an issue; the best two of a column are bold."""
    lines = [f"> {warning}\n" for warning in comparison.warnings]
    for table in comparison.tables:
        lines += [f"### {table.group.capitalize()}", "", *_markdown_header(header(table))]
        for row in table.rows:
            texts = (f"**{text}**" if top else text for text, top in cells(table, row))
            lines.append(_markdown_row([row.model, row.origin, *texts]))
        lines += ["", "Bold: the best two of a column, random weights aside.", ""]
    if comparison.verdicts:
        columns = ["task", "measured", "published", "noise", "verdict"]
        lines += ["### The pre-trained encoder beside the paper's", "", *_markdown_header(columns)]
    for verdict in comparison.verdicts:
        values = verdict.measured, verdict.published, verdict.noise
        numbers = (f"{value:.3f}" for value in values)
        lines.append(_markdown_row([verdict.column.name, *numbers, verdict.text]))
    return "\n".join(lines).rstrip() + "\n"


def _markdown_header(names: Sequence[str]) -> list[str]:
    return [_markdown_row(names), _markdown_row("---" for _ in names)]


def _markdown_row(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"


def to_csv(tables: Sequence[Table]) -> str:
    """Return every score as one line: group, task, metric, model, origin, score."""
    lines: list[list[str | float]] = [["group", "task", "metric", "model", "origin", "score"]]
    lines += [
        [table.group, *column.key, row.model, row.origin, round(row.scores[column.key], 6)]
        for table in tables
        for row in table.rows
        for column in table.columns
        if column.key in row.scores
    ]
    return _csv_text(lines)


def leaderboard(row: ModelRow) -> str:
    """Return a CSV header and a line with the first metric of each of the 18 tasks.

    The public HEAR leaderboard has one line per model and one column per task; a task without a
    score is an empty field.
    """
    first: dict[str, Column] = {}
    for columns in GROUPS.values():
        for column in columns:
            first.setdefault(column.task, column)
    scores = [row.scores.get(column.key) for column in first.values()]
    values = ["" if score is None else round(score, 6) for score in scores]
    return _csv_text([["Model", *first], [row.model, *values]])


def _csv_text(lines: Iterable[Sequence[str | float]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
