"""What was measured: rows of samples per peer, ratios of medians, budgets; as Markdown tables and as JSON.

Rule 1: a peer that is missing or failed has its row, with the reason; none is dropped silently.
Rule 2: the host may run at two speeds, so figures are compared only within one run: ratios are of medians
of interleaved rounds (`interleave`).
Rule 3: a budget is what fibers promises: a ratio to a peer of the same run, or an absolute limit.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Failure, Missing, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Budget", "Result", "Row", "growth_table", "interleave", "machine", "prepared"]

SUBJECT = "fibers"


@dataclass
class Row:
    """One peer in one benchmark."""

    peer: str
    title: str
    command: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)  # one a round
    details: list[dict[str, float]] = field(default_factory=list)  # one a round, or none
    missing: str | None = None
    failure: Failure | None = None

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    def detail(self, name: str) -> float:
        """Median over the rounds of one of the details."""
        return statistics.median(sample[name] for sample in self.details)

    def as_json(self) -> dict[str, Any]:
        """Return all that is known."""
        return {
            "peer": self.peer,
            "title": self.title,
            "median": self.median if self.values else None,
            "minimum": min(self.values, default=None),
            "values": self.values,
            "details": self.details,
            "missing": self.missing,
            "failure": str(self.failure) if self.failure else None,
            "stderr": self.failure.stderr if self.failure else None,
        }


@dataclass(frozen=True)
class Budget:
    """The most that fibers may cost: `limit` times a peer's median, or `limit` units."""

    limit: float
    peer: str | None = None
    subject: str = SUBJECT


@dataclass
class Result:
    """One table."""

    name: str
    title: str
    unit: str
    rows: list[Row]
    baselines: Sequence[str]  # the peers of the ratio columns
    budgets: Sequence[Budget] = ()
    columns: Sequence[str] = ()  # the details that have a column
    digits: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def row(self, peer: str) -> Row | None:
        """Return a peer's row, if the peer was selected."""
        return next((row for row in self.rows if row.peer == peer), None)

    def measured(self, peer: str) -> float | None:
        """Return a peer's median, if it was measured."""
        row = self.row(peer)
        return row.median if row and row.values else None

    def ratio(self, peer: str, baseline: str) -> float | None:
        """Return the ratio of two peers' medians, if both were measured."""
        ours, theirs = self.measured(peer), self.measured(baseline)
        return ours / theirs if ours is not None and theirs else None

    def table(self) -> str:
        """Return the table with its title, what went wrong, and the budgets."""
        baselines = [row for name in self.baselines if (row := self.row(name)) and row.values]
        head = [
            "",
            f"median {self.unit}",
            "minimum",
            *(column.replace("_", " ") for column in self.columns),
            *(f"/ {row.title}" for row in baselines),
        ]
        body = []
        for row in self.rows:
            if not row.values:
                continue
            ratios = [self.ratio(row.peer, baseline.peer) for baseline in baselines]
            body.append(
                [
                    row.title,
                    *(f"{value:,.{self.digits}f}" for value in (row.median, min(row.values))),
                    *(f"{row.detail(column):,.0f}" for column in self.columns),
                    *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                ]
            )
        parts = [f"{self.name}: {self.title}", markdown([head, *body]), *self.problems()]
        if self.budgets:
            parts.append("\n".join(self.budget_line(budget) for budget in self.budgets))
        return "\n\n".join(parts)

    def problems(self) -> list[str]:
        """Return a text per peer that is missing or failed, and the warnings."""
        found = [f"{row.title}: missing: {row.missing}" for row in self.rows if row.missing]
        for row in self.rows:
            if row.failure:
                stderr = "".join(f"\n    {line}" for line in row.failure.stderr.splitlines())
                found.append(f"{row.title}: FAILED: {row.failure}{stderr}")
        return found + [f"warning: {warning}" for warning in self.warnings]

    def judge(self, budget: Budget) -> tuple[float | None, bool | None]:
        """Return what a budget limits, and whether it is met; None if not measured."""
        value = self.ratio(budget.subject, budget.peer) if budget.peer else self.measured(budget.subject)
        return value, None if value is None else value <= budget.limit

    def budget_line(self, budget: Budget) -> str:
        """Return a budget and whether it is met."""
        value, met = self.judge(budget)
        row = self.row(budget.peer) if budget.peer else None
        unit = f"x {row.title if row else budget.peer}" if budget.peer else self.unit
        said = "not measured" if value is None else f"{value:.2f}, {'met' if met else 'MISSED'}"
        return f"budget: {budget.subject} <= {budget.limit:.2f} {unit}: {said}"

    def as_json(self) -> dict[str, Any]:
        """Return all that is known."""
        judged = [(budget, *self.judge(budget)) for budget in self.budgets]
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "settings": self.settings,
            "rows": [
                {**row.as_json(), "ratios": {name: self.ratio(row.peer, name) for name in self.baselines}}
                for row in self.rows
            ],
            "budgets": [
                {"subject": budget.subject, "limit": budget.limit, "peer": budget.peer, "value": value, "met": met}
                for budget, value, met in judged
            ],
            "warnings": self.warnings,
        }


def prepared(peer: str, title: str, prepare: Callable[[], list[str]]) -> Row:
    """Return a peer's row, with its command if it can run here and the reason if it can't."""
    try:
        return Row(peer, title, prepare())
    except Missing as missing:
        return Row(peer, title, missing=str(missing))
    except Failure as failure:
        return Row(peer, title, failure=failure)


def interleave(
    results: Sequence[Result],
    rounds: int,
    take: Callable[[Result, Row], tuple[float, dict[str, float]]],
) -> None:
    """Take one sample of every peer in every round; a peer that failed is not started again."""
    for number in range(rounds):
        for result in results:
            for row in result.rows:
                if row.missing or row.failure:
                    continue
                progress(f"{result.name}, round {number + 1} of {rounds}: {row.title}")
                try:
                    value, details = take(result, row)
                except Failure as failure:
                    row.failure = failure
                    continue
                row.values.append(value)
                if details:
                    row.details.append(details)
    progress("")


def growth_table(small: Result, large: Result, baseline: str) -> str:
    """Return how each peer's median grows from one result to the other, beside the baseline's growth."""
    own = large.measured(baseline), small.measured(baseline)
    reference = own[0] / own[1] if own[0] and own[1] else None
    row = large.row(baseline)
    head = ["", small.name, large.name, "growth", f"/ growth of {row.title if row else baseline}"]
    body = []
    for row in large.rows:
        before, after = small.measured(row.peer), large.measured(row.peer)
        if before and after:
            beside = f"{after / before / reference:.2f}" if reference else ""
            body.append([row.title, f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.2f}", beside])
    return f"growth: median {large.unit}\n\n{markdown([head, *body])}"


def markdown(cells: list[list[str]]) -> str:
    """Return a Markdown table whose columns line up as text too."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [cells[0], rule, *cells[1:]]:
        padded = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions: dict[str, str | None] = {}
    for package in ("fibers-io", "greenlet", "gevent", "uvloop", "trio"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "kernel": platform.release(),
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }
