"""What this machine is, and what one outer gradient costs on it."""

from __future__ import annotations

import platform
import subprocess
import timeit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ddlib.base import generator
from ddlib.method import augment
from ddlib.method.functional import network
from ddlib.method.student import EXACT, InnerLoop, InnerLoss
from ddlib.runs import engine
from ddlib.runs.checkpoint import memory, reset_peak

if TYPE_CHECKING:
    from ddlib.runs.stages import Measurement

# What the bytes of a result may depend on beside its settings.
KIND = ("processor", "model", "vectors", "device", "compiler", "torch")


def machine() -> dict[str, str | int]:
    """KIND, the cores, the memory in GiB, and Python's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    model = [about.get(name, "?") for name in ("cpu family", "model", "stepping")]
    where = engine.device()
    return {
        "processor": about.get("model name", platform.processor()),
        "model": "family {}, model {}, stepping {}".format(*model),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "compiler": compiler(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": int(about.get("cpu cores", 0)),
        "memory": round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20),
    }


def compiler() -> str:
    """What compiled the kernels in use, in its own words."""
    try:
        from ddlib.method.fast import kernels
    except ImportError:  # method/fast may be deleted
        return "none"
    if kernels.library(torch.float32) is None:
        return "none"
    ask = [kernels.compiler(), "--version"]
    said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    return next(iter(said.splitlines()), "a compiler that does not say its version")


def described(about: dict[str, str | int]) -> str:
    """A machine in one line."""
    text = "{processor}, {cores} cores, {memory} GiB, {vectors}; Python {python}, torch {torch}"
    return text.format(**about)


def peak(run: Callable[[], object]) -> float:
    """Megabytes that `run` takes at most, above what the process holds before it; Linux only."""
    reset_peak()
    base = memory("VmRSS")
    run()
    return memory("VmHWM") - base


def measured(*given: Any) -> dict[str, str | float]:
    """`outer_gradient` in a fresh process: the heap of tasks keeps all and would hide its peak."""
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawn, initializer=engine.watched) as pool,
        engine.nameless(),
    ):
        return pool.submit(outer_gradient, *given).result()


def outer_gradient(
    settings: Measurement, shape: tuple[int, int, int], classes: int
) -> dict[str, str | float]:
    """Megabytes above the base, and the median seconds of three more calls, on random images.

    The adjoint keeps nothing of a step for the way back.
    """
    net, steps = network(settings.network, shape, classes), settings.inner_steps
    chance = generator(0, "measure")
    theta, target = net.initial(chance), net.initial(chance)
    labels = torch.arange(classes).repeat_interleave(settings.ipc)
    images = torch.randn(len(labels), *shape, generator=chance)
    draws = augment.draws([len(labels)] * steps, tuple(augment.STRATEGIES), chance, "cpu")
    loss = InnerLoss(net, labels, [torch.arange(len(labels))] * steps, draws, 1.0)
    loop = InnerLoop(loss, theta, images, torch.tensor(0.01), steps, settings.momentum, memory=0)

    def once() -> None:
        EXACT[settings.gradient](loop, lambda path: (path[steps] - target).square().sum(), [steps])

    most = peak(once)
    about: dict[str, Any] = {"gradient": settings.gradient, "inner_steps": steps}
    return about | {"megabytes": most, "seconds": median(timeit.repeat(once, number=1, repeat=3))}
