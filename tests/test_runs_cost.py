"""Cost before it is paid: closed forms for operations, measured peaks for memory."""

import ctypes
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from ddlib.__main__ import main
from ddlib.runs import cost, machine
from ddlib.runs.cost import Work
from ddlib.runs.profile import profile, profiles
from ddlib.settings import Network
from tiny import EXPERT, SET

COLOUR = (3, 32, 32)


def test_the_operations_of_one_block_by_hand():
    work = Work(Network(width=8, depth=1), (3, 6, 10), 5, "gradient", 7, 2)
    convolution, head = 2 * (3 * 9) * 8 * (6 * 10), 2 * (8 * 3 * 5) * 5
    # the gradient for the images is not asked for
    per_image = {"forward": convolution + head, "gradient": 2 * convolution + 3 * head}
    for form, flops in per_image.items():
        assert cost.cost(replace(work, form=form)).flops == 14 * flops


@pytest.mark.parametrize("form", ["unroll", "adjoint"])
def test_all_steps_but_the_first_two_cost_the_same(form):
    work = Work(Network(width=8, depth=2), COLOUR, 10, form, 4, 5)
    job = cost.prepare(work, "meta")
    with cost.Ledger() as ledger:
        job()
    counted = cost.cost(work)
    assert (ledger.flops, ledger.kernels) == (counted.flops, counted.kernels)
    assert ledger.peak == pytest.approx(counted.peak, rel=0.02)


def test_memory_grows_with_the_unroll_and_hardly_with_the_adjoint():
    def peaks(form):
        return [cost.cost(Work(Network(), COLOUR, 10, form, 100, steps)).peak for steps in (10, 80)]

    unroll, adjoint = peaks("unroll"), peaks("adjoint")
    assert unroll[1] > 6 * unroll[0] and adjoint[1] < 1.5 * adjoint[0]


def test_memory_is_predicted():
    """Against the measured peak of plain PyTorch in a fresh process."""
    work = Work(Network(width=32), COLOUR, 10, "unroll", 100, 6)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        measured = pool.submit(_peak, work).result()
    assert cost.cost(work).peak / 1e6 == pytest.approx(measured * 1.048576, rel=0.2)


def _peak(work: Work) -> float:
    """Large blocks come from the kernel, so what is freed is gone; what loads once is there."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    cost.prepare(replace(work, images=1, steps=1), "cpu")()
    return machine.peak(cost.prepare(work, "cpu"))


def test_what_does_not_fit_is_told_the_switch_that_makes_it_fit():
    work = Work(Network(), COLOUR, 100, "unroll", 1000, 20)
    need = {form: cost.device_bytes(replace(work, form=form)) for form in ("unroll", "adjoint")}
    assert cost.advice(work, need["unroll"]) == ""
    assert cost.advice(work, need["adjoint"]) == "gradient: adjoint"
    less = cost.advice(work, 0.7 * need["adjoint"])
    assert less.startswith("gradient: adjoint and ")
    assert cost.advice(work, 1e6) == "no switch: a narrower network or smaller images"


def test_seconds_order_tasks_as_they_should():
    longer = SET.model_copy(update={"iterations": 60})
    assert cost.seconds(longer) > cost.seconds(SET) > 0
    assert cost.seconds(EXPERT.model_copy(update={"penalty": "per_pixel"})) > cost.seconds(EXPERT)


@pytest.mark.parametrize("name", ["laptop", "smoke", "cifar10-ipc10", "imagenette-ipc1"])
def test_a_profile_has_a_plan(name):
    parts = cost.parts(profile(name))
    assert {one.stage for one in parts} == {"experts", "distillation", "evaluation"}
    assert all(one.tasks > 0 and one.works for one in parts) and name in profiles()


def test_the_command_prints_a_table_and_says_that_gpus_are_predicted(capsys):
    assert main(["plan", "smoke"]) == 0
    said = capsys.readouterr().out
    assert "GPU columns are predictions, never measured here" in said
    assert "| experts " in said and "here h" in said and "A100-80GB h" in said


def test_a_machine_says_what_it_is():
    about = machine.machine()
    assert set(machine.KIND) <= about.keys() and about["torch"] in machine.described(about)
