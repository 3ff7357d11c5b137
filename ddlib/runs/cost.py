"""What tasks cost, predicted before it is paid, here and on GPUs that need not be here.

A task is a few kinds of work, so often each: steps of training, of an inner loop or of evaluation.
`seconds` is rough: from settings alone it orders tasks and tells the time left. Times `pace` it is
the time on this machine. The rest counts: the real code runs on the meta device, where tensors have
shapes and no numbers, and PyTorch's registry counts its FLOP. Time on a GPU is the roofline: the
longest of FLOP / (peak * COMPUTE), bytes moved / (bandwidth * STREAM) and kernels * LAUNCH, for
PyTorch in float32 with TF32 convolutions.
"""

from __future__ import annotations

import time
import timeit
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddlib.base import Task, generator
from ddlib.data import datasets
from ddlib.method import augment, train
from ddlib.method.functional import network
from ddlib.method.networks import margin
from ddlib.method.student import GRADIENTS, InnerLoop, InnerLoss
from ddlib.runs import engine, studies
from ddlib.runs.profile import Profile, profile, profiles
from ddlib.runs.stages import Film
from ddlib.settings import (
    Condensation,
    Distillation,
    Distilled,
    Evaluation,
    Expert,
    Network,
    Recipe,
    Selection,
)

# Rough predictions, on one CPU core of about 2020.
IMAGE = 2.2e-4  # seconds: forward and backward of a 3 x 32 x 32 image, ConvNet, depth 3, width 32
STEP = 9e-4  # seconds that a step costs whatever its batch
OTHER = 3.0  # seconds of a task that trains nothing
# what is done with an image, and its cost to that of forward and backward
FORMS = {"forward": 0.3, "gradient": 1.0, "penalty": 5.0, "adjoint": 3.3, "unroll": 3.3}
NARROW = 0.6  # the power of the width that the cost of every network grows with up to 32
RELATIVE = {  # cost of the networks at width 32, and that power above
    "convnet": (1.0, 1.75),
    "alexnet": (8.5, 1.3),
    "vgg11": (9.5, 1.3),
    "resnet18": (40.0, 1.3),
    "resnet18_ap": (47.0, 1.3),
    "vit": (5.5, 1.3),
}
# Counted predictions.
HELD_OUT = 0.33  # validation and test images to training images
COMPUTE, STREAM = 0.3, 0.6  # fractions of the published rates that small convolutions reach
LAUNCH = 1e-5  # seconds of Python and driver per kernel
RESERVED = 2**30  # bytes of a GPU that its driver and its libraries take
HALF = 0.6  # memory with bfloat16 to that without
REAL = 4  # bytes of a number


@dataclass(frozen=True)
class Work:
    """`steps` steps on so many images each, of training, of an inner loop, or of evaluation."""

    network: Network
    shape: tuple[int, int, int]
    classes: int
    form: str  # of FORMS
    images: int
    steps: int = 1


@dataclass(frozen=True)
class Part:
    """Tasks of a stage that are alike: how many, what each runs, and what it leaves on disk."""

    stage: str
    what: str
    works: tuple[tuple[Work, float], ...]  # and how often; the first needs the most memory
    disk: float = 0.0  # bytes
    switch: str = "batch"  # the setting that bounds the images of the first work
    tasks: int = 1


def trained(settings: Evaluation) -> int:
    """Networks that an evaluation trains: to choose the lr, with it, and with a learned lr.

    The grid of lrs is taken to widen once.
    """
    choosing = (len(settings.lrs) + 1) * settings.search_networks * (len(settings.lrs) > 1)
    return choosing + settings.networks * (1 + isinstance(settings.of, Distillation))


def part(task: Expert | Distilled | Evaluation) -> Part:
    """What one expert, outer loop or evaluation runs."""
    known, name = datasets.about(task.data), task.data.name
    k, train_images = len(known.class_names), known.n_train

    def work(form: str, images: float, steps: int = 1) -> Work:
        return Work(task.network, known.shape, k, form, int(images), steps)

    def evaluated(times: float) -> tuple[Work, float]:
        return work("forward", 250), times * train_images * HELD_OUT / 250

    if isinstance(task, Expert):
        batch, epochs = min(task.batch, train_images), task.until or task.epochs
        form = "gradient" if task.penalty == "none" else "penalty"
        often = epochs * train_images / batch * (2 if task.sharpness else 1)
        path = REAL * (epochs + 1) * network(task.network, known.shape, k).parameters
        what = f"{name}, {'with' if form == 'penalty' else 'no'} penalty"
        return Part("experts", what, ((work(form, batch), often), evaluated(epochs + 1)), path)
    if isinstance(task, Evaluation):
        of = task.of
        n = train_images if isinstance(of, Selection) and of.method == "all" else k * of.ipc
        batch, networks = min(task.batch, n), trained(task)
        often = networks * task.epochs * n / batch
        what = f"{task.network.architecture} on {n} images of {name}"
        works = ((work("gradient", batch), often), evaluated(networks * task.looks))
        return Part("evaluation", what, works)
    n = k * task.ipc
    epochs = task.checks * task.check_epochs
    if isinstance(task, Condensation):  # and those between its steps
        epochs += task.iterations * (task.outer - 1) * task.inner
    training = (work("gradient", min(n, 256)), epochs * max(1.0, n / 256))
    disk = (task.checks + 2) * n * REAL * prod(known.shape)
    if isinstance(task, Condensation):
        batch, often = min(task.batch_real, known.per_class), task.iterations * task.outer * k
        real, ours = ("forward", "gradient") if task.method == "dm" else ("gradient", "adjoint")
        matched = ((work(real, batch), often), (work(ours, task.ipc), often), training)
        what = f"{name}, {task.method.upper()}, ipc {task.ipc}"
        return Part("distillation", what, matched, disk, "batch_real")
    batch = min(task.batch or n, n)
    exact = "unroll" if task.gradient == "unroll" else "adjoint"  # tesla: the same sweep
    what = f"{name}, ipc {task.ipc}, N = {task.inner_steps}, {batch} images per step"
    works = ((work(exact, batch, task.inner_steps), task.iterations), training)
    return Part("distillation", what, works, disk)


def on_cpu(work: Work) -> float:
    """Rough seconds of one core."""
    pixels = prod(side + 2 * margin(work.shape) for side in work.shape[1:])
    factor, power = RELATIVE[work.network.architecture]
    width = work.network.width / 32
    each = IMAGE * factor * width ** (power if width > 1 else NARROW) * pixels / 1024
    return work.steps * (work.images * each + STEP) * FORMS[work.form]


def seconds(task: Task) -> float:
    """A task's predicted seconds of one core, from its settings alone."""
    if isinstance(task, Film):
        return seconds(task.of.model_copy(update={"checks": 0}))
    if isinstance(task, Expert | Distilled | Evaluation):
        return sum(often * on_cpu(work) for work, often in part(task).works)
    return OTHER


def pace() -> float:
    """Processor seconds on this machine per predicted one, by some steps of an expert."""
    engine.settle()
    work = Work(Network(width=32), (3, 32, 32), 10, "gradient", 128)
    taken = timeit.repeat(prepare(work, "cpu"), timer=time.process_time, number=1, repeat=6)
    return median(taken[1:]) / (work.images * IMAGE)


class Cost(NamedTuple):
    """FLOP, bytes that kernels read and write, kernels, and the most bytes held at once."""

    flops: float
    moved: float
    kernels: float
    peak: float


class Ledger(TorchDispatchMode):
    """Counts what happens inside; FLOP by PyTorch's registry (convolutions, matrix products)."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # here: it brings a compiler

        super().__init__()
        self.registry = flop_registry
        self.flops = self.live = self.peak = self.moved = self.kernels = 0
        self.held: dict[weakref.ref, int] = {}

    def _free(self, storage: weakref.ref) -> None:
        self.live -= self.held.pop(storage)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if counter := self.registry.get(function._overloadpacket):
            self.flops += counter(*args, **(kwargs or {}), out_val=result)
        new = function._schema.is_mutable
        for tensor in (t for t in tree_leaves(result) if isinstance(t, Tensor)):
            storage = tensor.untyped_storage()
            reference = weakref.ref(storage, self._free)
            if reference not in self.held:
                new, self.held[reference] = True, storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
        if new:  # a view moves nothing
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.kernels += 1
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return result


def prepare(work: Work, device: str) -> Callable[[], object]:
    """The real code of that work, on random images (on the meta device: shapes), ready to run."""
    net, n, steps = network(work.network, work.shape, work.classes), work.images, work.steps
    chance = generator("counts") if device == "cpu" else None
    numbers = partial(torch.rand, generator=chance, device=device)
    theta, target = (net.initial(chance) if chance else numbers(net.parameters) for _ in range(2))
    x, labels = numbers(n, *work.shape), torch.arange(n, device=device) % work.classes
    draws = [augment.Draws("rotate", numbers(3, n))] * steps
    if work.form == "forward":
        return lambda: [net.logits(theta, x) for _ in range(steps)]
    if work.form in GRADIENTS:
        every = [torch.arange(n, device=device)] * steps
        loss, lr = InnerLoss(net, labels, every, draws, 1.0), torch.tensor(0.01, device=device)
        loop = InnerLoop(loss, theta, x, lr, steps, 0.9)
        form = GRADIENTS[work.form]
        return lambda: form(loop, lambda path: (path[steps] - target).square().sum(), [steps])
    penalty: Any = "per_pixel" if work.form == "penalty" else "none"
    recipe = Recipe(epochs=1, batch=n, lr=0.01, weight_decay=0.0, penalty=penalty)
    optimiser = train.optimiser_for(theta, recipe, recipe.lr)

    def steps_of_training() -> None:
        for drawn in draws:
            batch = train.Batch(x, labels, drawn)
            theta.grad = train.gradient(net, theta, batch, recipe)[1]
            optimiser.step()

    return steps_of_training


@cache
def cost(work: Work) -> Cost:
    """Counted in float32 on the meta device; of many steps by those of two and of three."""
    if work.steps > 3:
        two, three = (cost(replace(work, steps=n)) for n in (2, 3))
        return Cost(*(a + (work.steps - 2) * (b - a) for a, b in zip(two, three, strict=True)))
    full = work.network.model_copy(update={"precision": "float32"})
    job = prepare(replace(work, network=full), "meta")
    with Ledger() as ledger:
        job()
    return Cost(ledger.flops, ledger.moved, ledger.kernels, ledger.peak)


class Gpu(NamedTuple):
    """Published dense rates: TF32 FLOP/s, bytes/s, bytes."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {  # NVIDIA's whitepapers and data sheets; of the H100 half of the sparse rate
    "RTX 3090": Gpu(35.6e12, 936e9, 24e9),
    "RTX 4090": Gpu(82.6e12, 1008e9, 24e9),
    "A100-40GB": Gpu(156e12, 1555e9, 40e9),
    "A100-80GB": Gpu(156e12, 2039e9, 80e9),
    "H100-80GB": Gpu(494e12, 3350e9, 80e9),
}


def on_gpu(work: Work, gpu: Gpu) -> float:
    """Predicted seconds on a GPU."""
    c = cost(work)
    compute, stream = c.flops / (gpu.flops * COMPUTE), c.moved / (gpu.bandwidth * STREAM)
    return max(compute, stream, c.kernels * LAUNCH)


def device_bytes(work: Work) -> float:
    """Peak memory on a GPU, with what driver and libraries take."""
    return RESERVED + cost(work).peak * (HALF if work.network.precision == "bfloat16" else 1)


def advice(work: Work, memory: float, switch: str = "batch") -> str:
    """The switches that make the work fit `memory` bytes of a GPU; none where it fits."""
    words = []
    if work.form == "unroll" and device_bytes(work) > memory:
        work, words = replace(work, form="adjoint"), ["gradient: adjoint"]
    if device_bytes(work) > memory:
        half = replace(work, network=work.network.model_copy(update={"precision": "bfloat16"}))
        if device_bytes(half) <= memory:
            return " and ".join([*words, "precision: bfloat16"])
        while work.images > 1 and device_bytes(work) > memory:
            work = replace(work, images=work.images // 2)
        words.append(f"{switch}: {work.images}")
    fits = device_bytes(work) <= memory
    return " and ".join(words) if fits else "no switch: a narrower network or smaller images"


def parts(given: Profile) -> list[Part]:
    """All tasks of a paper, like ones counted together, stage after stage."""
    tasks = list(dict.fromkeys(studies.check(given)))
    known = set(tasks)
    for task in tasks:  # it grows by what each needs
        new = [other for other in task.needs() if other not in known]
        known |= set(new)
        tasks += new
    counts = Counter(part(t) for t in tasks if isinstance(t, Expert | Distilled | Evaluation))
    stages = ("experts", "distillation", "evaluation")
    found = [replace(one, tasks=n) for one, n in counts.items()]
    return sorted(found, key=lambda one: stages.index(one.stage))


def table(given: Profile, pace: float | None = None) -> pd.DataFrame:
    """One row per part: tasks, FLOP, GB with both gradients, disk, hours here and on each GPU."""
    lines = []
    for one in parts(given):
        main, n = one.works[0][0], one.tasks
        unrolled = replace(main, form="unroll") if main.form in GRADIENTS else main
        line = {
            "stage": one.stage,
            "what": one.what,
            "tasks": n,
            "FLOP": n * sum(often * cost(work).flops for work, often in one.works),
            "unroll GB": device_bytes(unrolled) / 1e9,
            "adjoint GB": device_bytes(main) / 1e9,
            "disk GB": n * one.disk / 1e9,
        }
        if pace is not None:
            line["here h"] = n * pace * sum(o * on_cpu(work) for work, o in one.works) / 3600
        for name, gpu in GPUS.items():
            line[f"{name} h"] = n * sum(o * on_gpu(work, gpu) for work, o in one.works) / 3600
        lines.append(line)
    return pd.DataFrame(lines)


def tight(given: Profile) -> Iterator[str]:
    """A sentence for each part that a GPU cannot hold as it is set, with the switch that helps."""
    for one in parts(given):
        for gpu, rate in GPUS.items():
            if switch := advice(one.works[0][0], rate.memory, one.switch):
                yield f"{one.stage}, {one.what} does not fit {gpu}; what fits: {switch}"


def report(name: str) -> None:
    """Measure this machine's pace, then print what a profile costs and what fits no GPU."""
    given, here = profile(name), pace()
    print(
        f"{given.title}: predicted cost. One process of one thread; pace of this machine {here:.2f}"
    )
    lines = table(given, here)
    sums = ["tasks", "FLOP", "disk GB", *(column for column in lines if column.endswith(" h"))]
    total = {**lines[sums].sum(), **lines[["unroll GB", "adjoint GB"]].max()}
    every_line = pd.concat([lines, pd.DataFrame([{"stage": "all", "what": "", **total}])])
    print(every_line.to_markdown(index=False, floatfmt=".3g"))
    print(
        f"GPU columns are predictions, never measured here: {COMPUTE:.0%} of the TF32 peak, "
        f"{STREAM:.0%} of the bandwidth, {LAUNCH * 1e6:.0f} us per kernel, {RESERVED / 1e9:.1f} GB "
        "reserved. Hours are of all tasks, one after another."
    )
    print(*tight(given), sep="\n")


def cells(gpu: str = "A100-80GB") -> pd.DataFrame:
    """One row for each cell of the paper: hours on one GPU, peak GB and GB of disk."""
    rows = []
    for name in profiles():
        given = profile(name)
        if list(given.cells) != [name]:
            continue
        cell, lines = given.cells[name], table(given)
        about: dict[str, Any] = {"cell": name, "data": given.title.split(",")[0]}
        about |= {"pixels": datasets.about(cell.data).shape[1], "ipc": cell.ipc}
        about |= {"hours": lines[f"{gpu} h"].sum()}
        about |= lines[lines.stage == "distillation"][["unroll GB", "adjoint GB"]].max().to_dict()
        about |= {"any stage GB": lines["adjoint GB"].max(), "disk GB": lines["disk GB"].sum()}
        rows.append(about | {"gpu": gpu})
    return pd.DataFrame(rows).sort_values(["pixels", "data", "ipc"], ignore_index=True)
