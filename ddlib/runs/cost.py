"""What a task costs, and what a step does.

`seconds` is rough: from settings alone it orders tasks and tells the time left. Times `pace` it is
the time on this machine. The rest counts: the real code runs on the meta device, where tensors have
shapes and no numbers, and PyTorch's registry counts its FLOP. Time on a GPU is the roofline: the
longest of FLOP / (peak * COMPUTE), bytes moved / (bandwidth * STREAM) and kernels * LAUNCH, for
PyTorch in float32 with TF32 convolutions.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cache
from math import prod
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ddlib.base import Task, generator
from ddlib.data import datasets
from ddlib.method import augment, train
from ddlib.method.functional import network
from ddlib.method.networks import margin
from ddlib.method.student import GRADIENTS, InnerLoop, InnerLoss
from ddlib.runs import engine
from ddlib.settings import Condensation, Distillation, Evaluation, Expert, Network, Recipe

# Rough predictions, on one CPU core of about 2020.
IMAGE = 2.2e-4  # seconds: forward and backward of a 3 x 32 x 32 image, ConvNet, depth 3, width 32
STEP = 9e-4  # seconds that a step costs whatever its batch
# evaluating all validation images costs as much as training on so many images for each training
# image, and that of validation and test images
VALIDATED, TESTED = 0.04, 0.12
PENALTY, PULL = 5.0, 3.3  # images with gradient penalty, and of an inner step and its pull
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
COMPUTE, STREAM = 0.3, 0.6  # fractions of the published rates that small convolutions reach
LAUNCH = 1e-5  # seconds of Python and driver per kernel
RESERVED = 2**30  # bytes of a GPU that its driver and its libraries take
HALF = 0.6  # memory with bfloat16 to that without
REAL = 4  # bytes of a number


def seconds(task: Task) -> float:
    """A task's predicted seconds of one core, from its settings alone."""
    of: Any = getattr(task, "of", task)
    known = datasets.about(of.data)
    classes, train_images = len(known.class_names), known.per_class * len(known.class_names)
    net: Network = getattr(task, "network", None) or Network(width=32)
    pixels = prod(side + 2 * margin(known.shape) for side in known.shape[1:])
    factor, power = RELATIVE[net.architecture]
    grown = (net.width / 32) ** (power if net.width > 32 else NARROW)
    each = IMAGE * factor * grown * pixels / 1024
    validated, tested = (share * train_images * each for share in (VALIDATED, TESTED))
    n = train_images if getattr(of, "method", "") == "all" else classes * getattr(of, "ipc", 1)
    if isinstance(task, Evaluation):
        steps = task.epochs * (n * each + STEP * -(-n // task.batch))
        judged = task.networks * (1 + isinstance(of, Distillation))
        looks = task.looks * (tested if task.test else validated)
        return trained(task) * (steps + validated) + judged * (looks - validated)
    if isinstance(task, Expert):
        once = PENALTY if task.penalty != "none" else 1.0
        images = train_images * once * (2 if task.sharpness else 1)
        return (task.until or task.epochs) * (images * each + tested)
    checks = getattr(task, "checks", 0) * (
        getattr(of, "check_epochs", 0) * (n * each + STEP) + validated
    )
    if task.stage in ("sets", "films") and isinstance(of, Distillation):
        steps = of.iterations * of.inner_steps
        return PULL * steps * (min(of.batch or n, n) * each + STEP) + checks
    if isinstance(task, Condensation):
        real = min(task.batch_real * classes, train_images)
        # DM needs no derivative for the real images, DC and DSA need the first
        passes = real / 3 + n if task.method == "dm" else real + 4 * n
        training = task.inner * (n * each + STEP * -(-n // task.batch))
        turn = task.outer * (passes * each + 2 * classes * STEP) + (task.outer - 1) * training
        return task.iterations * turn + checks
    if getattr(task, "expert", None):  # the features of all images, and what is made of them
        return 2.0 + 0.8 * train_images * each
    return 10.0 if task.stage == "measurements" else 2.0


def trained(settings: Evaluation) -> int:
    """Networks that an evaluation trains: to choose the lr, with it, and with a learned lr.

    The grid of lrs is taken to widen once.
    """
    choosing = (len(settings.lrs) + 1) * settings.search_networks * (len(settings.lrs) > 1)
    return choosing + settings.networks * (1 + isinstance(settings.of, Distillation))


Form = Literal["forward", "gradient", "penalty", "adjoint", "unroll"]


@dataclass(frozen=True)
class Work:
    """`steps` steps on so many images each, of training, of an inner loop, or of evaluation."""

    network: Network
    shape: tuple[int, int, int]
    classes: int
    form: Form
    images: int
    steps: int = 1


@dataclass(frozen=True)
class Cost:
    """FLOP, bytes that kernels read and write, kernels, and the most bytes held at once."""

    flops: float
    moved: float
    kernels: float
    peak: float


class Ledger(TorchDispatchMode):
    """Counts what happens inside; FLOP by PyTorch's registry (convolutions, matrix products)."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = self.moved = self.kernels = 0
        self.held: dict[weakref.ref, int] = {}

    def _free(self, storage: weakref.ref) -> None:
        self.live -= self.held.pop(storage)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if counter := flop_registry.get(function._overloadpacket):
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
    chance = generator("counts")

    def numbers(*size: int) -> Tensor:
        if device == "cpu":
            return torch.rand(*size, generator=chance)
        return torch.empty(*size, device=device)

    theta, target = (
        net.initial(chance) if device == "cpu" else numbers(net.parameters) for _ in range(2)
    )
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
        two, three = (astuple(cost(replace(work, steps=n))) for n in (2, 3))
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


def pace() -> float:
    """Processor seconds on this machine per predicted one, by some steps of an expert."""
    engine.settle()
    images, taken = 128, []
    step = prepare(Work(Network(width=32), (3, 32, 32), 10, "gradient", images), "cpu")
    for _ in range(6):
        began = time.process_time()
        step()
        taken.append(time.process_time() - began)
    return median(taken[1:]) / (images * IMAGE)


def device_bytes(work: Work) -> float:
    """Peak memory on a GPU, with what driver and libraries take."""
    return RESERVED + cost(work).peak * (HALF if work.network.precision == "bfloat16" else 1)


def advice(work: Work, memory: float, switch: str = "batch") -> str | None:
    """The first switch that makes the work fit `memory` bytes of a GPU; None where it fits."""
    if device_bytes(work) <= memory:
        return None
    first = ["gradient: adjoint"] if work.form == "unroll" else []
    if first and device_bytes(work := replace(work, form="adjoint")) <= memory:
        return first[0]
    half = work.network.model_copy(update={"precision": "bfloat16"})
    if device_bytes(replace(work, network=half)) <= memory:
        return " and ".join([*first, "precision: bfloat16"])
    batch = work.images
    while batch > 1 and device_bytes(replace(work, images=batch)) > memory:
        batch //= 2
    if device_bytes(replace(work, images=batch)) > memory:
        return "no switch: a narrower network or smaller images"
    return " and ".join([*first, f"{switch}: {batch}"])
