"""Cost before it is paid: closed forms and counters for operations, measured peaks for memory, measured medians for time."""

import ctypes
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ddlib import settings as config
from ddlib.__main__ import main
from ddlib.paper import build as press
from ddlib.runs import counts, measure, plan
from ddlib.runs.counts import Work
from ddlib.settings import Network

COLOUR = (3, 32, 32)
NETWORKS = {"convnet": 32, "alexnet": 16, "vgg11": 8, "resnet18": 8, "resnet18_ap": 8, "vit": 32}


def test_the_operations_of_one_block_by_hand():
    work = Work(Network(width=8, depth=1), (3, 6, 10), 5, "gradient", 7, 2)
    convolution, head = 2 * (3 * 9) * 8 * (6 * 10), 2 * (8 * 3 * 5) * 5
    assert counts.layers(work.network, work.shape, 5) == (convolution, head)
    assert counts.flops(replace(work, form="forward")) == 14 * (convolution + head)
    assert counts.flops(work) == 14 * (
        2 * convolution + 3 * head
    )  # nobody asks for the images' gradient
    assert counts.flops(replace(work, form="unroll")) == 14 * (6 * convolution + 9 * head)


@pytest.mark.parametrize("form", ["forward", "gradient"])
@pytest.mark.parametrize("architecture", NETWORKS)
def test_operations_are_those_that_a_counter_sees(architecture, form):
    work = Work(
        Network(architecture=architecture, width=NETWORKS[architecture]), COLOUR, 10, form, 4
    )
    run = counts.prepare(work, "meta")
    with FlopCounterMode(display=False) as counter:
        run()
    assert counts.flops(work) == counter.get_total_flops()


class Operations(TorchDispatchMode):
    """The counter's registry, without its hooks, which function transforms do not bear."""

    flops = 0

    def __torch_dispatch__(self, function, types, given=(), options=None):
        made = function(*given, **(options or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.flops += count(*given, **(options or {}), out_val=made)
        return made


def seen(work):
    run = counts.prepare(work, "meta")
    with Operations() as operations:
        run()
    return operations.flops


@pytest.mark.parametrize("form", ["penalty", "adjoint", "unroll"])
def test_second_derivatives_count_as_said(form):
    """One more step, as nobody asks for the gradient of theta_0; a penalty's head is linear, which saves a little."""
    more = Work(Network(width=32), COLOUR, 10, form, 4, 3)
    fewer = replace(more, steps=2)
    assert counts.flops(more) - counts.flops(fewer) == pytest.approx(
        seen(more) - seen(fewer), rel=0.03
    )


@pytest.mark.parametrize("form", ["adjoint", "unroll"])
def test_all_steps_but_the_first_cost_the_same(form):
    work = Work(Network(width=8, depth=2), (3, 16, 16), 5, form, 10, 6)
    assert counts.cost(work) == counts.counted(work)


def measured_peak(work):
    """Large blocks come from the kernel: what is held is what is live, without the holes of a heap that keeps freed memory; what loads once is there."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    counts.prepare(replace(work, images=1, steps=1), "cpu")()
    return measure.peak(counts.prepare(work, "cpu"))


PEAKS = [
    Work(Network(width=16), COLOUR, 10, "unroll", 50, 12),
    Work(Network(width=32), COLOUR, 10, "unroll", 50, 5),
    Work(Network(width=16, depth=4), (3, 64, 64), 10, "unroll", 20, 4),
    Work(Network(width=64), (3, 16, 16), 10, "unroll", 100, 4),
    Work(Network(width=32, depth=2), (1, 28, 28), 10, "unroll", 80, 4),
    Work(Network(width=128, depth=2), (3, 8, 8), 10, "adjoint", 10, 80),
    Work(Network(width=256, depth=2), (3, 8, 8), 10, "adjoint", 10, 30),
    Work(Network(width=128), (3, 16, 16), 10, "adjoint", 5, 50),
    Work(Network(width=32, depth=4), (3, 64, 64), 10, "adjoint", 200, 2),
    Work(Network(width=128, depth=2), (1, 12, 12), 10, "adjoint", 10, 80),
]


@pytest.mark.parametrize(
    "work", PEAKS, ids=lambda w: f"{w.form}-{w.network.width}-{w.shape[1]}px-n{w.images}-N{w.steps}"
)
def test_memory_is_predicted(work):
    fresh = get_context("forkserver")
    fresh.set_forkserver_preload(
        ["ddlib.counts", "ddlib.measure"]
    )  # imports take seconds; nothing has run there
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        measured = pool.submit(measured_peak, work).result()
    predicted = counts.peak_here(work) / 2**20
    print(f"{predicted:.0f} MB predicted, {measured:.0f} MB measured")
    assert predicted > 90 and predicted == pytest.approx(measured, rel=0.2)


TIMES = [
    Work(Network(width=32), COLOUR, 10, "gradient", 256),
    Work(Network(width=32), COLOUR, 10, "penalty", 128),
    Work(Network(width=32), COLOUR, 10, "adjoint", 20, 10),
    Work(Network(width=32), COLOUR, 10, "adjoint", 100, 4),
    Work(Network(width=32), COLOUR, 10, "unroll", 40, 4),
]


def timed():
    """Predicted over measured seconds of each work, and how far two measurements of the same work, before and after, are apart."""

    def measured():
        return [plan.seconds(work, 3, time.monotonic() + 5) for work in TIMES]

    before, rates, after = measured(), plan.calibrate(TIMES, 12.0), measured()
    found = [plan.here(work, rates) for work in TIMES]
    return [p / (a * b) ** 0.5 for p, a, b in zip(found, before, after, strict=True)], max(
        max(a / b, b / a) for a, b in zip(before, after, strict=True)
    )


def test_time_is_predicted():
    """Within 30 %; where other processes come and go, no prediction can be judged."""
    for _ in range(3):
        ratios, apart = timed()
        print([f"{ratio:.2f}" for ratio in ratios], f"{apart:.2f}")
        if ratios == pytest.approx([1.0] * len(TIMES), abs=0.3):
            return
    if apart > 1.15:
        pytest.skip(
            f"the machine is not quiet: the same work took {apart:.2f} times as long a few seconds later"
        )
    pytest.fail(f"predicted over measured: {ratios}")


def test_what_does_not_fit_is_told_the_switch_that_makes_it_fit():
    unroll = Work(Network(width=32), COLOUR, 10, "unroll", 100, 20)
    adjoint = replace(unroll, form="adjoint")
    need = plan.device_bytes
    assert plan.advice(unroll, need(unroll)) is None
    assert plan.advice(unroll, need(adjoint)) == "gradient: adjoint"
    assert plan.advice(adjoint, 0.99 * need(adjoint)) == "precision: bfloat16"
    assert plan.advice(adjoint, need(replace(adjoint, images=25))) == "batch: 25"
    assert plan.advice(adjoint, plan.RESERVED).startswith("no switch")


@pytest.mark.parametrize(
    "name", ["smoke", "laptop", "cifar100-ipc10", "tiny_imagenet-ipc10", "imagenette-ipc1"]
)
def test_every_profile_has_a_plan(name):
    found = plan.parts(config.profile(name))
    assert {part.stage for part in found} == {"experts", "distillation", "evaluation"}


def test_disk_is_that_of_the_trajectories():
    found = plan.parts(config.profile("cifar100-ipc10"))
    expert = next(part for part in found if part.stage == "experts")
    assert expert.disk == 51 * 4 * counts.parameters(Network(width=128), COLOUR, 100)


def test_the_command_prints_a_table_and_says_that_gpus_are_predicted(monkeypatch, capsys):
    monkeypatch.setattr(plan, "calibrate", partial(plan.calibrate, budget=2.0))
    assert main(["plan", "smoke"]) == 0
    said = capsys.readouterr().out
    assert all(
        words in said
        for words in (
            "experts",
            "distillation",
            "evaluation",
            "unroll GB",
            "adjoint GB",
            "here h",
            *plan.GPUS,
            "predictions",
        )
    )
    assert main(["plan", "smok"]) == 2


def test_the_readmes_table_of_cells_is_what_is_predicted():
    rows = pd.read_csv(press.CELLS)
    assert set(rows.cell) == {name for name in config.profiles() if "-ipc" in name}
    (kept,) = rows[rows.cell == "cifar10-ipc10"].to_dict("records")
    predicted = plan.cell("cifar10-ipc10")
    assert predicted == {
        name: value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
        for name, value in kept.items()
    }
    assert press.cells_table(rows) in (press.HOME / "README.md").read_text()


def test_memory_grows_with_the_unroll_and_hardly_with_the_adjoint():
    short, long = (
        {
            form: counts.cost(Work(Network(width=32), COLOUR, 10, form, 50, n)).peak
            for form in ("unroll", "adjoint")
        }
        for n in (5, 80)
    )
    assert long["unroll"] > 8 * short["unroll"] and long["adjoint"] < 1.5 * short["adjoint"]
