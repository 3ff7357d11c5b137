"""The one file that joins the stages with the store: settings in, artefact out, whatever is missing made on the way.

Data -> Expert -> Selection -> Distillation or Condensation -> Evaluation; each names what it needs inside its own settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing, nullcontext, suppress
from functools import cache, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlib.data import datasets as data
from ddlib.data import mtt_format as exchange
from ddlib.data.datasets import Images
from ddlib.method import networks
from ddlib.method.condense import condense
from ddlib.method.continual import learn
from ddlib.method.distill import State, Step, begin, distil, inner_loss
from ddlib.method.evaluate import evaluate, score, trained_on
from ddlib.method.experts import Snapshot, imported, train_expert, trajectory
from ddlib.method.fast import convnet as fused
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.select import INITIAL
from ddlib.method.student import walk
from ddlib.method.train import Diverged
from ddlib.runs import cost, engine, measure
from ddlib.runs.checkpoint import Keeper, interval
from ddlib.runs.shards import Shard, split
from ddlib.runs.store import Absent, Artefact, Damaged, Store, sweep
from ddlib.runs.track import Tracker, chosen, finite, tracked
from ddlib.settings import (
    Condensation,
    Continual,
    Data,
    Distillation,
    Distilled,
    Evaluation,
    Expert,
    Film,
    Following,
    Imported,
    InputError,
    Measurement,
    Network,
    Selection,
    Settings,
    generator,
    key,
)

FAINT = 1.5  # an imported expert that is not this many times as good as chance is doubted

log = logging.getLogger("ddlib")


def images(settings: Data, store: Store) -> Images:
    """The data set, in the space in which networks see it, where tasks compute."""
    return placed(data.load(settings, store.root), engine.device())


@lru_cache(maxsize=2)
def placed(real: Images, device: torch.device) -> Images:
    """One copy a process; the CPU's is the one that was loaded."""
    return real if device.type == "cpu" else real.on(device)


@cache
def network(settings: Network, shape: tuple[int, int, int], classes: int) -> FunctionalNetwork:
    """The network for these images, as a function of one vector."""
    return fused.flat(networks.build(settings, shape, classes), settings.precision)


def expert(settings: Expert | Imported, seed: int) -> Expert | Imported:
    """The same recipe under another seed, or another trajectory of the same buffer."""
    return settings.model_copy(update={"seed": seed})


def needs(settings: Settings) -> list[Settings]:
    """The tasks whose artefacts this one reads."""
    if isinstance(settings, Evaluation | Following):
        return [settings.of]
    if isinstance(settings, Distillation):
        return [settings.start, *(expert(settings.experts, i) for i in range(settings.n_experts))]
    if isinstance(settings, Film):
        return needs(settings.of)
    if isinstance(settings, Condensation):
        return [settings.start]
    if isinstance(settings, Selection) and settings.expert:
        return [settings.expert]
    if isinstance(settings, Continual) and settings.memory:
        return [settings.memory]
    return []


def of_data(made: Distilled | Selection) -> Data:
    """What a set was made of."""
    return made.start.data if isinstance(made, Distilled) else made.data


def made_with(made: Distilled | Selection) -> Network | None:
    """The network that a set was made with, or its images were picked with; none, where nothing looked at them."""
    if isinstance(made, Distilled):
        return made.network
    return made.expert.network if made.expert else None


def check(settings: Settings) -> None:
    """Refuse before any work what only data and buffers can tell: more images a class than there are, more experts, or experts of another network."""
    for inner in (settings, *needs(settings)):
        if isinstance(inner, Imported) and inner.seed >= (
            held := sum(n for _, n in exchange.count(inner.buffer, shapes(inner), inner.epochs))
        ):
            raise InputError(
                f"{inner.buffer} holds {held} trajectories, but number {inner.seed} (from 0) is asked for: set n_experts to at most {held}"
            )
        if isinstance(inner, Selection) and inner.method not in ("noise", "all"):
            most = data.per_class(inner.data)
            if inner.ipc > most:
                raise InputError(
                    f"ipc = {inner.ipc}, but {inner.data.title} has {most} training images a class: choose an ipc of at most {most}"
                )


def shapes(settings: Expert | Imported) -> dict[str, torch.Size]:
    """The parameters of an expert's network in order, by name."""
    known = data.about(settings.data)
    return network(settings.network, known.shape, len(known.class_names)).shapes


def name(settings: Settings) -> str:
    """A task in a few words, for progress and errors."""
    if isinstance(settings, Imported):
        return f"expert {settings.seed} of {settings.buffer} on {settings.data.title}"
    if isinstance(settings, Expert):
        return f"expert {settings.optimiser} {settings.seed} on {settings.data.title}"
    if isinstance(settings, Selection):
        return f"{settings.method} images, ipc {settings.ipc}, seed {settings.seed}, of {settings.data.title}"
    if isinstance(settings, Distillation):
        return f"distilling ipc {settings.start.ipc}, seed {settings.seed}, of {settings.start.data.title}"
    if isinstance(settings, Condensation):
        return f"{settings.method.upper()}, ipc {settings.start.ipc}, seed {settings.seed}, of {settings.start.data.title}"
    if isinstance(settings, Following):
        return f"following with {name(settings.of)}"
    if isinstance(settings, Continual):
        return f"tasks of {settings.data.title}, seed {settings.seed}, with {name(settings.memory) if settings.memory else 'no memory'}"
    if isinstance(settings, Film):
        return f"a film of {name(settings.of)}"
    if isinstance(settings, Measurement):
        return f"measuring the {settings.gradient} at N = {settings.inner_steps}"
    assert isinstance(settings, Evaluation)
    return f"{settings.network.architecture} on {name(settings.of)}"


def work(settings: Settings) -> float:
    """Predicted seconds."""
    task: Any = settings.of if isinstance(settings, Evaluation | Following | Film) else settings
    where = of_data(task) if isinstance(task, Distilled) else task.data
    known = data.about(where)
    classes, (_, h, w) = len(known.class_names), known.shape
    return cost.work(settings, known.per_class * classes, classes, h * w)


def make_expert(settings: Expert, store: Store) -> None:
    """Train it, keep its trajectory, one row an epoch and its smoothness."""
    real = images(settings.data, store)
    flat = network(settings.network, real.shape, real.classes)
    keep = Keeper(store, settings)
    with tracked(settings, name(settings), store.root) as tracker:
        path, rows, smooth = trajectory(told(train_expert(settings, flat, real, keep), tracker))
    keep.finish({"path": path}, {"rows": rows, "smoothness": smooth})


def told(snapshots: Iterable[Snapshot], tracker: Tracker) -> Iterator[Snapshot]:
    """The same, each also told to a tracker."""
    for snapshot in snapshots:
        tracker.tell(snapshot.epoch, finite(snapshot.row))
        yield snapshot


def import_expert(settings: Imported, store: Store) -> None:
    """Read its trajectory from the buffer, and keep what is kept of a trained one."""
    real = images(settings.data, store)
    flat = network(settings.network, real.shape, real.classes)
    given = exchange.trajectory(
        settings.buffer, settings.seed, flat.shapes, settings.epochs, settings.contents
    )
    path, rows, smooth = trajectory(imported(given, flat, real))
    if rows[-1]["validation_accuracy"] < FAINT * max(
        1 / real.classes, rows[0]["validation_accuracy"]
    ):
        log.warning(
            "%s classifies %.1f %% of the validation images at its end, hardly more than chance: was it trained on this data, in this space "
            "(`data: {zca: true}`, or `space: mtt` for buffers of MTT's code)?",
            name(settings),
            100 * rows[-1]["validation_accuracy"],
        )
    store.save(settings, {"path": path}, {"rows": rows, "smoothness": smooth})


def make_selection(settings: Selection, store: Store) -> None:
    """Pick IPC images a class, class after class."""
    real = images(settings.data, store)
    chance, keep = generator(settings.seed, "selection"), Keeper(store, settings)
    if settings.method == "all":
        x, y, taken = real.x_train, real.y_train, torch.arange(len(real.y_train))
    elif settings.method == "noise":
        y, taken = (
            torch.arange(real.classes).repeat_interleave(settings.ipc),
            torch.empty(0, dtype=torch.long),
        )
        x = torch.randn(len(y), *real.shape, generator=chance)
    else:
        taken = pick(settings, store, chance, keep)
        x, y = real.x_train[taken], real.y_train[taken]
    keep.finish({"images": x, "labels": y, "indices": taken} | space(real), {"lr": settings.lr})


def pick(settings: Selection, store: Store, chance: torch.Generator, keep: Keeper) -> Tensor:
    """Indices of IPC training images a class, class after class."""
    real, way = images(settings.data, store), INITIAL[settings.method]
    if settings.centres:
        way = partial(way, centres=settings.centres)
    seen = (features(settings, store) if settings.expert else real.x_train.flatten(1)).cpu()
    taken: list[Tensor] = []
    if held := keep.left("taken", "chance"):
        taken = list(held["taken"].split(settings.ipc))
        chance.set_state(held["chance"])

    def so_far() -> dict:
        return {"taken": torch.cat(taken), "chance": chance.get_state()}

    for c in range(len(taken), real.classes):
        mine = (real.y_train == c).nonzero().flatten().cpu()
        if settings.method == "correct":
            mine = mine[seen[mine].argmax(1) == c]
            if len(mine) < settings.ipc:
                raise InputError(
                    f"the expert is right about {len(mine)} images of class {real.class_names[c]}, below ipc = {settings.ipc}: train it longer, or lower ipc"
                )
        taken.append(mine[way(seen[mine], settings.ipc, chance)])
        keep(so_far)
    return torch.cat(taken)


def space(real: Images) -> dict[str, Tensor]:
    """The data's whitening, to travel with a set."""
    return {f"space.{name}": t for name, t in real.space.tensors().items()}


@torch.no_grad()
def features(settings: Selection, store: Store) -> Tensor:
    """What the fully trained expert makes of each training image, (n, d)."""
    real = images(settings.data, store)
    flat = network(settings.expert.network, real.shape, real.classes)
    theta = get(settings.expert, store).tensors["path"][-1].to(real.x_train)
    see = flat if settings.features == "logits" else flat.features
    return torch.cat([see(theta, x) for x in real.x_train.split(250)])


def make_set(settings: Distilled, store: Store) -> None:
    """Run the outer loop; of the images at each check keep those that taught a fresh network best on the validation split."""
    real, flat, labels, state = opening(settings, store)
    keep = Keeper(store, settings)
    with tracked(settings, name(settings), store.root) as tracker:
        curve, history = outer_loop(
            settings,
            flat,
            turns(settings, store, flat, labels, real),
            state,
            labels,
            real,
            keep,
            tracker,
        )
    looked = [row for row in curve if "validation_accuracy" in row]
    best = max(range(len(looked)), key=lambda i: looked[i]["validation_accuracy"])
    tensors = {
        "images": history["history"][best + 1],
        "labels": labels,
        "history": torch.stack(history["history"]),
    } | space(real)
    if "soft_history" in history:
        tensors["soft"] = history["soft_history"][best + 1]
    keep.finish(
        tensors,
        {"lr": looked[best]["lr"], "chosen_iteration": looked[best]["iteration"], "curve": curve},
    )


def opening(settings: Distilled, store: Store) -> tuple[Images, FunctionalNetwork, Tensor, State]:
    """What an outer loop begins with: the real images, the network, the classes (n,) of the images that it starts from, and its first state."""
    real = images(settings.start.data, store)
    flat = network(settings.network, real.shape, real.classes)
    start = get(settings.start, store)
    labels, first = (start.tensors[name].to(real.x_train.device) for name in ("labels", "images"))
    soft = (
        expert_labels(settings, flat, first, store)
        if isinstance(settings, Distillation) and settings.labels
        else None
    )
    return real, flat, labels, begin(settings, first, soft)


def marks(iterations: int, number: int) -> set[int]:
    """So many outer iterations, evenly spaced, the last at the end; all, where there are fewer."""
    return {iterations * (i + 1) // number for i in range(number)} - {0}


def expert_labels(
    settings: Distillation, flat: FunctionalNetwork, first: Tensor, store: Store
) -> Tensor:
    """What a fully trained expert makes of the start images, logits (n, K): the one by whose features a study picks them. DATM averages all that are right."""
    one = expert(settings.experts, settings.seed % settings.n_experts)
    theta = rows_of(one, store)(one.epochs, one.epochs + 1)[0].to(first)
    return torch.cat([flat.logits(theta, x) for x in first.split(250)])


def looked_at(state: State) -> dict[str, Tensor]:
    """What is kept of a state at a look: the images, and the logits of soft labels."""
    return {"history": state.kept.cpu()} | (
        {} if state.labels is None else {"soft_history": state.labels.cpu()}
    )


def continued(state: State, held: dict[str, Any]) -> State:
    """The state that an earlier run left, in place of the first."""
    return State(
        held["iteration"],
        **{name: held[name].to(part.device) for name, part in state.tensors().items()},
    )


def turns(
    settings: Distilled, store: Store, flat: FunctionalNetwork, labels: Tensor, real: Images
) -> Callable[[State], Iterator[Step]]:
    """The outer loop, to be begun from any of its states."""
    if isinstance(settings, Condensation):
        return partial(condense, settings, flat, real, labels)
    paths = [rows_of(expert(settings.experts, i), store) for i in range(settings.n_experts)]
    return partial(
        distil, settings, flat, lambda i, s, m: paths[i](s, s + m + 1), labels, real.strategies
    )


def outer_loop(
    settings: Distilled,
    flat: FunctionalNetwork,
    turns: Callable[[State], Iterator[Step]],
    state: State,
    labels: Tensor,
    real: Images,
    keep: Keeper,
    tracker: Tracker,
) -> tuple[list[dict], dict[str, list[Tensor]]]:
    """From the first state: one row an iteration, with the validation accuracy where it was looked at, and what is kept of the start and of each look.

    Raises:
        Diverged: a number stopped being finite; the last good state is kept.
    """
    judge = Evaluation(of=settings.start, network=settings.network, epochs=settings.check_epochs)
    checks = marks(settings.iterations, settings.checks)
    curve, history = [], {name: [part] for name, part in looked_at(state).items()}
    if held := keep.left("iteration", "curve", *history, *state.tensors()):
        state = continued(state, held)
        curve, history = held["curve"], {name: list(held[name]) for name in history}

    def so_far() -> dict:
        stacked = {name: torch.stack(parts) for name, parts in history.items()}
        return state.tensors() | stacked | {"iteration": state.iteration, "curve": curve}

    def look() -> None:
        if state.iteration in checks and "validation_accuracy" not in curve[-1]:
            y = labels if state.labels is None else state.labels.softmax(1)
            result = score(
                judge,
                flat,
                state.kept,
                y,
                state.lr,
                real,
                seed=state.iteration,
                test=False,
                keep=keep.inside(so_far),
            )
            curve[-1]["validation_accuracy"] = result.validation
            for name, part in looked_at(state).items():
                history[name].append(part)

    try:
        look()  # a run that was killed while it looked looks first
        steps = turns(state)
        while state.iteration < settings.iterations:
            step = next(steps)
            state = step.state
            curve.append(
                {
                    "iteration": state.iteration,
                    "loss": step.loss,
                    "start": step.start,
                    "lr": state.lr,
                }
            )
            look()
            tracker.tell(state.iteration, finite(curve[-1]))
            keep(so_far)
    except Diverged:
        keep.now(so_far)
        raise
    return curve, history


def make_rows(settings: Evaluation, store: Store) -> None:
    """Fresh networks on the set; one row each."""
    held, keep = get(settings.of, store), Keeper(store, settings)
    rows = judge(
        settings,
        held.tensors["images"],
        trained_on(held, settings.labels == "hard"),
        held.record["lr"],
        store,
        keep,
    )
    keep.finish({}, {"rows": rows})


def judge(
    settings: Evaluation, x: Tensor, y: Tensor, lr: float, store: Store, keep: Keeper | None = None
) -> list[dict]:
    """Fresh networks on images x with labels y, hard or soft, wherever these come from; one row each. Without a keeper, which a task has, it shows how far it is."""
    real = images(of_data(settings.of), store)
    flat = network(settings.network, real.shape, real.classes)
    given = (settings, flat, x.to(real.x_train), y.to(real.y_train.device), lr, real)
    if keep:
        rows = evaluate(*given, keep)
    else:
        with closing(engine.Progress("judging the set", work(settings))) as progress:
            rows = evaluate(
                *given,
                Watched(progress, cost.runs(settings, 2) * settings.epochs, "networks train on it"),
            )
    return [row | {"settings_key": key(settings)} for row in rows]


class Watched(Keeper):
    """Keeps nothing, and shows how far a loop of so many turns at most is."""

    def __init__(self, progress: engine.Progress, turns: float, text: str):
        super().__init__()
        self.progress, self.share, self.text = progress, progress.total / turns, text

    def __call__(self, state: Callable[[], dict]) -> None:
        """A turn is done."""
        self.progress.advance(self.share, self.text)


def make_following(settings: Following, store: Store) -> None:
    """Per expert and epoch: |theta - theta*_e| / |theta*_0 - theta*_e| of a student started at theta*_0 and left to itself."""
    of = settings.of
    real, held, keep = images(of.start.data, store), get(of, store), Keeper(store, settings)
    flat = network(of.experts.network, real.shape, real.classes)
    epochs, each = of.start_epochs - 1 + of.matched_epochs, of.inner_steps // of.matched_epochs
    long = of.model_copy(update={"inner_steps": epochs * each, "balance": False})
    x, y = (
        held.tensors[name].to(real.x_train.device)
        for name in ("images", "soft" if "soft" in held.tensors else "labels")
    )
    rows, lr = [], torch.tensor(held.record["lr"], device=x.device)
    if past := keep.left("rows", "theta", "b"):
        rows, theta, b = past["rows"], past["theta"].to(x), past["b"].to(x)

    def so_far() -> dict:
        return {"rows": rows, "theta": theta, "b": b}

    for i in range(len(rows) // epochs, of.n_experts):
        target = rows_of(expert(of.experts, i), store)(0, epochs + 1).to(x)  # (epochs + 1, P)
        loss = inner_loss(flat, y, long, real.strategies, 0, -1 - i)
        for e in range(len(rows) % epochs + 1, epochs + 1):
            if e == 1:
                theta, b = target[0], torch.zeros_like(target[0])
            theta, b = walk(
                loss, theta, b, x, lr, range((e - 1) * each + 1, e * each + 1), of.momentum
            )
            error = float((theta - target[e]).norm() / (target[0] - target[e]).norm())
            rows.append({"expert_seed": i, "epoch": e, "error": error})
            keep(so_far)
    keep.finish({}, {"rows": rows})


def make_continual(settings: Continual, store: Store) -> None:
    """One network through all tasks; one row a task and each before it."""
    real, keep = images(settings.data, store), Keeper(store, settings)
    flat = network(settings.network, real.shape, real.classes)
    held = get(settings.memory, store).tensors if settings.memory else None
    memory = held and {name: held[name].to(real.x_train.device) for name in ("images", "labels")}
    keep.finish({}, {"rows": learn(settings, flat, real, memory, keep)})


def make_film(settings: Film, store: Store) -> None:
    """Run the outer loop of a distillation again and keep the first image of each class shown, at the start and at each frame; no set is read or judged.

    Rows: how far from the start a frame is, the root mean square over its pixels, in pixels of [0, 1].
    """
    of = settings.of
    real, flat, labels, state = opening(of, store)
    keep = Keeper(store, settings)
    wanted, first = (
        marks(of.iterations, settings.frames),
        slice(0, settings.shown * of.start.ipc, of.start.ipc),
    )  # images lie class after class
    frames = [state.kept[first].cpu()]
    if held := keep.left("iteration", "frames", *state.tensors()):
        state, frames = continued(state, held), list(held["frames"])

    def so_far() -> dict:
        return state.tensors() | {"iteration": state.iteration, "frames": torch.stack(frames)}

    steps = turns(of, store, flat, labels, real)(state)
    while state.iteration < of.iterations:
        state = next(steps).state
        if state.iteration in wanted:
            frames.append(state.kept[first].cpu())
        keep(so_far)
    seen = [real.space.leave(frame) for frame in frames]
    rows = [
        {"iteration": t, "moved": float((x - seen[0]).square().mean().sqrt())}
        for t, x in zip([0, *sorted(wanted)], seen, strict=True)
    ]
    keep.finish(
        {"frames": torch.stack(frames), "labels": labels[first]} | space(real), {"rows": rows}
    )


def make_measurement(settings: Measurement, store: Store) -> None:
    """In a fresh process, whose peak memory is its own, with PyTorch's memory settings: a heap that keeps what is freed would hide what is live."""
    known = data.about(settings.data)
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=engine.watched) as pool,
        engine.nameless(),
    ):
        store.save(
            settings,
            {},
            pool.submit(
                measure.outer_gradient, settings, known.shape, len(known.class_names)
            ).result(),
        )


MAKE: dict[type[Settings], Callable[[Any, Store], None]] = {
    Expert: make_expert,
    Imported: import_expert,
    Selection: make_selection,
    Distillation: make_set,
    Condensation: make_set,
    Evaluation: make_rows,
    Following: make_following,
    Continual: make_continual,
    Film: make_film,
    Measurement: make_measurement,
}


def settled(fields: dict) -> Settings:
    """The settings that an artefact says it was made under.

    Raises:
        InputError: no task has such.
    """
    for kind in MAKE:
        with suppress(ValueError):  # of another kind
            return kind(**fields)
    raise InputError(
        f"settings of {', '.join(fields) or 'nothing'} are of no task that this library knows: expected those of an artefact that it made"
    )


def get(settings: Settings, store: Store) -> Artefact:
    """The artefact of `settings`: read if it is there and sound, else made, with all that it needs; what another process is on is waited for."""

    def make() -> None:
        check(settings)
        for other in needs(settings):
            if not store.has(other):
                get(other, store)
        MAKE[type(settings)](settings, store)

    return store.kept(settings, name(settings), make, needs(settings))


def spent(settings: Settings, store: Store) -> dict:
    """What making it cost, and what making the experts that it reads did, by their notes; None where a note is lacking."""
    note = store.note(settings) or {}
    taught = [
        store.note(other) for other in needs(settings) if isinstance(other, Expert | Imported)
    ]
    experts = sum(one["seconds"] for one in taught) if all(taught) else None
    return {
        name: note.get(name) for name in ("seconds", "processor_seconds", "megabytes", "runs")
    } | {"experts_seconds": experts}


def rows_of(settings: Expert | Imported, store: Store) -> Callable[[int, int], Tensor]:
    """`(first, last) -> rows first ... last - 1` of an expert's path, read from disk without the rest; what is damaged is made again first."""
    try:
        return store.rows_of(settings)
    except (Absent, Damaged):
        get(settings, store)
    return store.rows_of(settings)


def task(settings: Settings, root: Path) -> None:
    """`get` for another process."""
    get(settings, Store(root))


def missing(wanted: Iterable[Settings], store: Store | None) -> dict[Settings, list[Settings]]:
    """All tasks that `wanted` still asks for, each with what it needs; without a store, all that it ever asks for."""
    found: dict[Settings, list[Settings]] = {}

    def visit(settings: Settings) -> None:
        if settings in found or (store and store.has(settings)):
            return
        check(settings)
        found[settings] = needs(settings)
        for other in found[settings]:
            visit(other)

    for settings in wanted:
        visit(settings)
    return found


def ensure(
    wanted: Iterable[Settings],
    store: Store,
    progress: engine.Progress | None = None,
    workers: int | None = None,
    pool: Executor | None = None,
    shard: tuple[int, int] | None = None,
) -> None:
    """Make everything that `wanted` needs and the store lacks, side by side, with progress and time left; as shard (i, n), the i-th part of n."""
    interval()  # a wrong CHECKPOINT stops here, before any work
    chosen()  # and a wrong TRACK
    wanted = list(wanted)
    sweep(store.root)
    tasks, member = missing(wanted, store), None
    if shard:
        owner = split(missing(wanted, None), shard[1], work)
        tasks = missing([t for t in tasks if owner[t] == shard[0]], store)
        member = Shard(*shard, owner, store.root, store.has, name)
    with member or nullcontext():
        for where in {
            s.data for s in tasks if isinstance(s, Expert | Imported | Selection | Continual)
        }:
            images(
                where, store
            )  # one process builds the data set, the rest read it; a missing one stops here, before any work
        engine.run(
            tasks,
            partial(task, root=store.root.resolve()),
            work,
            name,
            progress,
            workers,
            pool,
            member,
            store.busy,
        )
