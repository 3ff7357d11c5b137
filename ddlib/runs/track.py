"""Watching experts and outer loops with a tracker: TRACK=tensorboard, mlflow or wandb; off unless it is asked for.

A tracker is given a task, then numbers by name at each epoch or outer iteration, and is closed. What it leaves lies under `track` in the store, one run a
task; a task that was killed tells again what came after its last checkpoint, an expert all its epochs. Nothing that a tracker does can change an artefact:
it is told numbers that are kept anyway, and draws no chance of ours.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ddlib.settings import InputError, Settings, key

Numbers = Mapping[str, float]


class Tracker(Protocol):
    """The one interface: a class that takes (task, its name, a folder)."""

    def __init__(self, settings: Settings, name: str, folder: Path): ...

    def tell(self, step: int, numbers: Numbers) -> None:
        """After that epoch or outer iteration."""

    def close(self) -> None:
        """The task ends, finished or not."""


class Silent:
    """Tells nobody."""

    def __init__(self, settings: Settings, name: str, folder: Path):
        pass

    def tell(self, step: int, numbers: Numbers) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files: `tensorboard --logdir store/track/tensorboard`."""

    def __init__(self, settings: Settings, name: str, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / f"{name} {key(settings)}"))
        self.writer.add_text("settings", f"```\n{settings.model_dump_json(indent=1)}\n```")

    def tell(self, step: int, numbers: Numbers) -> None:
        for what, number in numbers.items():
            self.writer.add_scalar(what, number, step)

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """Runs in a folder: `mlflow ui --backend-store-uri store/track/mlflow`; or at the environment's MLFLOW_TRACKING_URI."""

    def __init__(self, settings: Settings, name: str, folder: Path):
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or folder.absolute().as_uri()
        )
        self.run = self.client.create_run(
            "0", run_name=name, tags={"key": key(settings)}
        ).info.run_id  # of the experiment that is always there
        self.client.log_dict(self.run, settings.model_dump(mode="json"), "settings.json")

    def tell(self, step: int, numbers: Numbers) -> None:
        for what, number in numbers.items():
            self.client.log_metric(self.run, what, number, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


class WandB:
    """Runs of Weights & Biases, offline: nothing leaves this machine until `wandb sync` is asked to send it."""

    def __init__(self, settings: Settings, name: str, folder: Path):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "project": "ddlib",
            "name": name,
            "tags": [settings.stage],
            "config": settings.model_dump(mode="json"),
        }
        self.run = wandb.init(
            **about,
            dir=str(folder),
            mode="offline",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def tell(self, step: int, numbers: Numbers) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, tuple[type[Tracker], str]] = {  # with the package that each needs
    "tensorboard": (TensorBoard, "tensorboard"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WandB, "wandb"),
}


def chosen() -> tuple[str, type[Tracker]]:
    """The environment's TRACK: its name, and what it means.

    Raises:
        InputError: no tracker of that name, or its package is not installed.
    """
    given = os.environ.get("TRACK") or ""
    if not given:
        return given, Silent
    if given not in TRACKERS:
        raise InputError(
            f"TRACK={given}: expected one of {', '.join(TRACKERS)}; correct it, or leave TRACK out"
        )
    kind, package = TRACKERS[given]
    try:
        import_module(package)
    except ImportError:
        raise InputError(
            f"TRACK={given}, but {package} is not installed: pip install {package}, or leave TRACK out"
        ) from None
    return given, kind


@contextmanager
def tracked(settings: Settings, name: str, root: Path) -> Iterator[Tracker]:
    """The tracker of a task whose store is at `root`."""
    named, kind = chosen()
    tracker = kind(settings, name, root / "track" / named)
    try:
        yield tracker
    finally:
        tracker.close()


def finite(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, without those that are not finite."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
