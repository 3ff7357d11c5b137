"""Memory of an outer gradient: the unroll's grows with N, the adjoint's hardly does. Sizes only, no times."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from ddlib.runs import engine, measure
from ddlib.settings import Data, Measurement, Network

WORK = {"network": Network(width=16), "data": Data(name="mnist_m_5k"), "ipc": 5}


def megabytes(gradient, inner_steps):
    settings = Measurement(**WORK, gradient=gradient, inner_steps=inner_steps)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=engine.settle) as pool:
        return pool.submit(measure.outer_gradient, settings, (3, 32, 32), 10).result()["megabytes"]


def test_the_adjoint_is_flat_where_the_unroll_grows():
    adjoint, unroll = (
        megabytes(gradient, 12) - megabytes(gradient, 2) for gradient in ("adjoint", "unroll")
    )
    assert unroll > 100 and adjoint < unroll / 4
