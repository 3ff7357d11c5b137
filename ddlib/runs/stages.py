"""The stages: one class of settings and one function each, `make(settings, inputs, keep)`.

A function is handed all that it reads: the data set, and the artefacts of `settings.needs()`. It
returns tensors and a record, which `runs.run` keeps. So the way of a set is straight: data,
experts, selection, outer loop, evaluation. A new stage is a class and a function, and one of MAKE.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ddlib.base import InputError, Task, key
from ddlib.data import datasets, mtt_format
from ddlib.data.datasets import Images
from ddlib.method.condense import condense
from ddlib.method.distill import State, Step, begin, distill, marks
from ddlib.method.evaluate import SyntheticSet, evaluate, score
from ddlib.method.experts import Snapshot, convexified, imported, train_expert, trajectory
from ddlib.method.functional import FunctionalNetwork, network
from ddlib.method.select import features, select
from ddlib.method.student import follow
from ddlib.method.train import Diverged, Epoch
from ddlib.runs import engine, machine
from ddlib.runs.checkpoint import Checkpoint
from ddlib.runs.store import Artefact
from ddlib.settings import (
    AnyExpert,
    Condensation,
    Count,
    Data,
    Distillation,
    Distilled,
    Evaluation,
    Expert,
    Fraction,
    Imported,
    Network,
    OfSet,
    Selection,
)

FAINT = 1.5  # an imported expert that is not this many times as good as chance is doubted

log = logging.getLogger("ddlib")

Made = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and a record that JSON can hold


class OfDistillation(OfSet):
    """What looks at an outer loop and its set."""

    of: Distillation

    @property
    def network(self) -> Network:
        """The student's."""
        return self.of.network


class Following(OfDistillation):
    """A student that goes an expert's whole way on a set and is never put back on its path."""

    stage: ClassVar[str] = "followings"
    words: ClassVar[str] = "following with {s.of.title}"

    def needs(self) -> list[Task]:
        return [self.of, *self.of.needs()[1:]]  # the set, and its experts


class Film(OfDistillation):
    """The images of a distillation on their way. Its outer loop runs again without checks."""

    stage: ClassVar[str] = "films"
    words: ClassVar[str] = "a film of {s.of.title}"
    frames: Count = 50  # after the start, evenly spaced, the last at the end
    shown: Count = 10  # classes, the first ones; the first image of each

    def needs(self) -> list[Task]:
        return self.of.needs()


class Measurement(Task):
    """Memory and time of one outer gradient, taken once in a process of its own."""

    stage: ClassVar[str] = "measurements"
    words: ClassVar[str] = "measuring the {s.gradient} at N = {s.inner_steps}"
    network: Network
    data: Data
    ipc: Count
    gradient: Literal["adjoint", "unroll"]
    inner_steps: Count
    momentum: Fraction = 0.9


@dataclass(frozen=True)
class Inputs:
    """What a stage reads: the data set, where tasks compute, and artefacts by their settings."""

    real: Images
    artefacts: Mapping[Task, Artefact]

    def __getitem__(self, settings: Task) -> Artefact:
        return self.artefacts[settings]

    def network(self, settings: Network) -> FunctionalNetwork:
        """That network for images of the data set."""
        return network(settings, self.real.shape, self.real.classes)

    def space(self) -> dict[str, Tensor]:
        """The data's whitening, which travels with a set."""
        return {f"space.{name}": t for name, t in self.real.space.tensors().items()}

    def logits(self, expert: AnyExpert, images: Tensor) -> Tensor:
        """What an expert says of images at its end (n, K)."""
        net, theta = self.network(expert.network), self[expert].tensors["path"][-1].to(images)
        return torch.cat([net.logits(theta, x) for x in images.split(250)])

    def on_device(self, tensor: Tensor) -> Tensor:
        """A tensor brought to where the data set is."""
        return tensor.to(self.real.x_train.device)


def make_expert(settings: Expert, inputs: Inputs, keep: Checkpoint) -> Made:
    """Train it: its trajectory, one row per epoch, and its smoothness."""
    net, snapshots, last = inputs.network(settings.network), [], None
    if past := keep.left("path", "rows", *Epoch.names(settings)):
        pairs = zip(past["path"], past["rows"], strict=True)
        snapshots = [Snapshot(row["epoch"], theta, row) for theta, row in pairs]
        last = Snapshot(past["epoch"] + 1, past["path"][-1], {}, Epoch.of(past, settings))

    def unfinished() -> dict:
        path = torch.stack([snapshot.theta for snapshot in snapshots])
        return {"path": path, "rows": [s.row for s in snapshots], **last.state.state()}

    try:
        for snapshot in train_expert(settings, net, inputs.real, last):
            last = snapshot  # of the others the state, which a device may hold, is let go
            snapshots.append(Snapshot(last.epoch, last.theta, last.row))
            keep.report(last.epoch, last.row)
            if last.state:
                keep(unfinished)
    except Diverged:
        if last and last.state:
            keep.now(unfinished)
        raise
    path, rows, smooth = trajectory(snapshots)
    return {"path": path}, {"rows": rows, "smoothness": smooth}


def import_expert(settings: Imported, inputs: Inputs, keep: Checkpoint) -> Made:
    """Read its trajectory from the buffer, and measure what is measured of a trained one."""
    real, net = inputs.real, inputs.network(settings.network)
    stored = mtt_format.trajectory(
        settings.buffer, settings.seed, net.shapes, settings.epochs, settings.contents
    )
    path, rows, smooth = trajectory(imported(stored, net, real))
    first, last = (row["validation_accuracy"] for row in (rows[0], rows[-1]))
    if last < FAINT * max(1 / real.classes, first):
        log.warning(
            "%s classifies %.1f %% of the validation images at its end, hardly more than chance: "
            "was it trained on this data, in this space (`data: {zca: true}`, or `space: mtt` for "
            "buffers of MTT's code)?",
            settings.title,
            100 * last,
        )
    return {"path": path}, {"rows": rows, "smoothness": smooth}


def make_selection(settings: Selection, inputs: Inputs, keep: Checkpoint) -> Made:
    """Pick IPC images per class, class after class; those that were handed over are not here."""
    if settings.method == "given":
        raise InputError(
            f"{settings.title} ({settings.contents}) are those of a set that was handed over, and "
            "are not in this store: hand that set to distil or merge again"
        )
    seen = None
    if settings.expert:
        net = inputs.network(settings.expert.network)
        theta = inputs[settings.expert].tensors["path"][-1].to(inputs.real.x_train)
        seen = features(settings, net, theta, inputs.real)
    x, y, indices = select(settings, inputs.real, seen)
    return {"images": x, "labels": y, "indices": indices} | inputs.space(), {"lr": settings.lr}


class OuterLoop:
    """An outer loop at work: its network, the classes (n,) of its images, and its state."""

    def __init__(self, settings: Distilled, inputs: Inputs):
        self.settings, self.inputs = settings, inputs
        self.network = inputs.network(settings.network)
        start = inputs[settings.start].tensors
        self.labels, images = (inputs.on_device(start[name]) for name in ("labels", "images"))
        soft = None
        if isinstance(settings, Distillation) and settings.labels:
            # Soft labels start from the expert whose features pick the images of a study. DATM
            # averages all experts that are right.
            expert = settings.experts.at(settings.seed % settings.n_experts)
            of_set = "soft" in start  # one that goes on
            soft = inputs.on_device(start["soft"]) if of_set else inputs.logits(expert, images)
        self.state = begin(settings, images, soft)

    def resume(self, past: dict[str, Any]) -> None:
        """Go on from the state that an earlier run left."""
        parts = {name: past[name].to(t.device) for name, t in self.state.tensors().items()}
        self.state = State(past["iteration"], **parts)

    def unfinished(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        return self.state.tensors() | {"iteration": self.state.iteration}

    def steps(self) -> Iterator[Step]:
        """The outer iterations from the present state to the last."""
        settings, real = self.settings, self.inputs.real
        if isinstance(settings, Condensation):
            every = condense(settings, self.network, real, self.labels, self.state)
        else:
            given = (self.network, self.segment, self.labels, real.strategies, self.state)
            every = distill(settings, *given, engine.memory())
        while self.state.iteration < settings.iterations:
            step = next(every)
            self.state = step.state
            yield step

    def segment(self, expert: int, start: int, epochs: int) -> Tensor:
        """Snapshots theta*_s ... theta*_{s+M} of an expert, read from disk without the rest."""
        settings: Any = self.settings
        path = self.inputs[settings.experts.at(expert)].tensors["path"]
        if settings.convex:
            path = convexified(path, self.network.sizes)
        return path[start : start + epochs + 1]

    def judged(self) -> dict[str, Tensor]:
        """What is kept of the state at a check: the images, and the logits of soft labels."""
        soft = self.state.labels
        parts = {"history": self.state.kept.cpu()}
        return parts if soft is None else parts | {"soft_history": soft.cpu()}


def make_set(settings: Distilled, inputs: Inputs, keep: Checkpoint) -> Made:
    """Run the outer loop; keep the images of the check that scored best on validation images."""
    loop = OuterLoop(settings, inputs)
    checks, curve = marks(settings.iterations, settings.checks), []
    history = {name: [part] for name, part in loop.judged().items()}
    if past := keep.left("curve", *history, *loop.unfinished()):
        loop.resume(past)
        curve, history = past["curve"], {name: list(past[name]) for name in history}

    def unfinished() -> dict:
        stacked = {name: torch.stack(parts) for name, parts in history.items()}
        return loop.unfinished() | stacked | {"curve": curve}

    try:
        for step in loop.steps():
            state = step.state
            row = {"iteration": state.iteration, "loss": step.loss, "start": step.start}
            curve.append(row | {"lr": state.lr})
            if state.iteration in checks:
                curve[-1]["validation_accuracy"] = check(loop)
                for name, part in loop.judged().items():
                    history[name].append(part)
            keep.report(state.iteration, curve[-1])
            keep(unfinished)
    except Diverged:
        keep.now(unfinished)
        raise
    checked = [row for row in curve if "validation_accuracy" in row]
    best = max(range(len(checked)), key=lambda i: checked[i]["validation_accuracy"])
    tensors = {
        "images": history["history"][best + 1],
        "labels": loop.labels,
        "history": torch.stack(history["history"]),
        **inputs.space(),
    }
    if soft := history.get("soft_history"):
        tensors |= {"soft": soft[best + 1], "soft_history": torch.stack(soft)}
    lr, chosen = checked[best]["lr"], checked[best]["iteration"]
    return tensors, {"lr": lr, "chosen_iteration": chosen, "curve": curve}


def check(loop: OuterLoop) -> float:
    """The validation accuracy of one fresh network trained on the images as they are."""
    settings, state = loop.settings, loop.state
    how = Evaluation(of=settings.start, network=settings.network, epochs=settings.check_epochs)
    labels = loop.labels if state.labels is None else state.labels.softmax(1)
    images = SyntheticSet(state.kept, labels, state.lr)
    seed = state.iteration
    return score(how, loop.network, images, loop.inputs.real, seed, test=False).validation


def judged(settings: Evaluation, artefact: Artefact, inputs: Inputs) -> SyntheticSet:
    """A stored set as these settings judge it."""
    hard, last = settings.labels == "hard", settings.images == "last"
    synthetic = SyntheticSet.of(artefact, hard, last)
    if settings.teacher is None:
        return synthetic
    said = inputs.logits(settings.teacher, inputs.on_device(synthetic.images))
    return replace(synthetic, labels=said.softmax(1).cpu())


def make_rows(settings: Evaluation, inputs: Inputs, keep: Checkpoint) -> Made:
    """Fresh networks on the set, one row each."""
    synthetic = judged(settings, inputs[settings.of], inputs)
    return {}, {"rows": judge(settings, synthetic, inputs.real)}


def judge(
    settings: Evaluation,
    synthetic: SyntheticSet,
    real: Images,
    done: Callable[[], None] = lambda: None,
) -> list[dict]:
    """Rows of fresh networks on any images; `done` is called after each network."""
    net = network(settings.network, real.shape, real.classes)
    rows = evaluate(settings, net, synthetic, real, done)
    return [row | {"settings_key": key(settings)} for row in rows]


def make_following(settings: Following, inputs: Inputs, keep: Checkpoint) -> Made:
    """How far a student left to itself strays from each expert, one row per expert and epoch."""
    of, artefact = settings.of, inputs[settings.of]
    tensors = artefact.tensors
    images = inputs.on_device(tensors["images"])
    labels = inputs.on_device(tensors["soft" if "soft" in tensors else "labels"])
    lr = torch.tensor(artefact.record["lr"], device=images.device)
    net, strategies, rows = inputs.network(of.network), inputs.real.strategies, []
    for i in range(of.n_experts):
        path = inputs[of.experts.at(i)].tensors["path"]
        rows += follow(of, net, (images, labels, lr), strategies, path, i)
    return {}, {"rows": rows}


def make_film(settings: Film, inputs: Inputs, keep: Checkpoint) -> Made:
    """The first image of each class shown, at the start and at each frame.

    Rows: how far from the start a frame is, the root mean square over its pixels of [0, 1].
    """
    of, loop = settings.of, OuterLoop(settings.of, inputs)
    frames_at = marks(of.iterations, settings.frames)
    first = slice(0, settings.shown * of.ipc, of.ipc)  # images lie class after class
    frames = [loop.state.kept[first].cpu()]
    if past := keep.left("frames", *loop.unfinished()):
        loop.resume(past)
        frames = list(past["frames"])
    for step in loop.steps():
        if step.state.iteration in frames_at:
            frames.append(step.state.kept[first].cpu())
        keep(lambda: loop.unfinished() | {"frames": torch.stack(frames)})
    pixels = [inputs.real.space.leave(frame) for frame in frames]
    rows = [
        {"iteration": t, "moved": float((x - pixels[0]).square().mean().sqrt())}
        for t, x in zip([0, *sorted(frames_at)], pixels, strict=True)
    ]
    tensors = {"frames": torch.stack(frames), "labels": loop.labels[first]}
    return tensors | inputs.space(), {"rows": rows}


def make_measurement(settings: Measurement, inputs: Inputs, keep: Checkpoint) -> Made:
    """Nothing is kept but the record."""
    known = datasets.about(settings.data)
    return {}, machine.measured(settings, known.shape, len(known.class_names))


MAKE: dict[type[Task], Callable[[Any, Inputs, Checkpoint], Made]] = {
    Expert: make_expert,
    Imported: import_expert,
    Selection: make_selection,
    Distillation: make_set,
    Condensation: make_set,
    Evaluation: make_rows,
    Following: make_following,
    Film: make_film,
    Measurement: make_measurement,
}
KINDS = tuple(MAKE)


def make(settings: Task, inputs: Inputs, keep: Checkpoint) -> Made:
    """What the task of `settings` makes of its inputs."""
    return MAKE[type(settings)](settings, inputs, keep)


def settings_of(fields: dict[str, Any]) -> Any:
    """The settings that an artefact says it was made under."""
    for kind in KINDS:
        try:
            return kind(**fields)
        except ValueError:  # of another kind
            continue
    raise InputError(
        f"settings of {', '.join(fields) or 'nothing'} belong to no stage that this library knows: "
        "expected those of an artefact that it made"
    )
