"""Accuracies that others published, each with its source: to be shown beside ours, never in one column with what was measured here.

Percent of test images of the named data set, after training a ConvNet on IPC images a class; "full" has no IPC. No accuracy that the AST paper reports is known here.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILE = Path(__file__).parent / "published.csv"


def published() -> pd.DataFrame:
    """method, labels (hard or soft), dataset, ipc, accuracy, std (percent; blank where none is given), source."""
    return pd.read_csv(FILE).astype({"ipc": "Int64"})
