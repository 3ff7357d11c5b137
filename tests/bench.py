"""What the fast forms gain over plain PyTorch on this machine: `make bench` prints the table and
keeps it in results/bench/bench.csv.

Each time is the median of several, the sides taken in turn within one run, one thread each, in a
process of its own: `plain` as PyTorch comes (tests/plain.py), `ours` as the engine runs it. The
limit is what plain PyTorch's convolutions alone take, inputs ready and nothing in between; kernels
of our own may beat it. A ratio above 1 speaks for ours, whatever the unit.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pandas as pd
import torch

import plain
from ddlib.files import write_whole
from ddlib.method import augment, functional
from ddlib.method.student import InnerLoop, InnerLoss, adjoint
from ddlib.method.train import Batch, Epoch, gradient, gradient_norms, optimiser_for
from ddlib.method.train import train as epochs_of
from ddlib.paper import pages
from ddlib.progress import Progress, clock
from ddlib.runs import engine, machine
from ddlib.settings import Network, Recipe, generator

# Of aten's convolution: stride, padding, dilation, transposed, output padding, groups.
HOW = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
RESULTS = Path(__file__).parent.parent / "results" / "bench"
K, DEPTH, EVERY = 10, 3, tuple(augment.STRATEGIES)
GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@cache
def setting(shape, width, n):
    """Networks, parameters and n images; made once a process."""
    chance = generator("bench", *shape, width, n)
    net = functional.network(Network(width=width, depth=DEPTH), shape, K)
    theta, target = net.initial(chance), net.initial(chance)
    x = torch.randn(n, *shape, generator=chance)
    return SimpleNamespace(
        net=net,
        module=plain.ConvNet(shape, K, width, DEPTH),
        theta=theta,
        target=target,
        x=x,
        y=torch.arange(n) % K,
    )


def cost(g):
    """The gradient penalty as AST weighs it."""
    return 2.0 / len(g) * (gradient_norms(g, "per_sample") - 1).square().sum()


def train(side, shape, width, batch, penalty=False, epochs=1, repeats=1):
    """`epochs` steps on all images at once, `repeats` times from the start: an expert's step, or
    networks on a distilled set."""
    s = setting(shape, width, batch)
    recipe = Recipe(
        epochs=epochs,
        batch=batch,
        lr=0.01,
        weight_decay=0.0,
        drop=1.0,
        penalty="per_sample" if penalty else "none",
    )
    for i in range(repeats):
        if side == "ours" and epochs == 1:
            theta = s.theta.clone()
            draws = augment.draw(batch, EVERY, generator(i))
            theta.grad = gradient(s.net, theta, Batch(s.x, s.y, draws), recipe)[1]
            optimiser_for(theta, recipe, 0.01).step()
        elif side == "ours":
            list(epochs_of(s.net, Epoch.first(s.theta), s.x, s.y, recipe, (i,)))
        else:
            batches = [
                torch.randperm(batch, generator=generator(i, epoch)) for epoch in range(epochs)
            ]
            plain.train(
                s.module.load(s.theta),
                s.x,
                s.y,
                batches,
                0.01,
                EVERY,
                generator(i),
                cost if penalty else None,
            )


def outer(side, shape, width, ipc, steps):
    """One outer gradient."""
    n = K * ipc
    s, lr = setting(shape, width, n), torch.tensor(0.01)
    draws = augment.draws([n] * steps, EVERY, generator("draws"), "cpu")
    if side == "ours":
        loss = InnerLoss(s.net, s.y, [torch.arange(n)] * steps, draws, 1.0)
        loop = InnerLoop(loss, s.theta, s.x, lr, steps, 0.9)
        adjoint(loop, lambda path: (path[steps] - s.target).square().sum(), [steps])
    else:
        plain.outer(s.module, s.theta, s.x, s.y, lr, steps, 0.9, draws, s.target)


STEP, PENALTY, UNROLLED = (
    ((1, 0, 1), (1, 1, 1)),
    ((2, 1, 2), (2, 2, 2)),
    ((2, 2, 2), (3, 3, 3)),
)  # forward, image, weight; of the first, of later ones


def convolutions(shape, width, n, kinds, repeats):
    """The convolutions that plain PyTorch makes of so many steps, alone."""
    for i, (x, weight, zbar) in enumerate(layers(shape, width, n)):
        for counts in kinds:
            for op, count in enumerate(counts[min(i, 1)]):
                for _ in range(count * repeats):
                    if op == 0:
                        torch.ops.aten.convolution(x, weight, None, *HOW)
                    else:
                        torch.ops.aten.convolution_backward(
                            zbar, x, weight, None, *HOW, [op == 1, op == 2, False]
                        )


@cache
def layers(shape, width, n):
    """Input, kernel and cotangent of each convolution."""
    c, h, w = shape
    found = []
    for i in range(DEPTH):
        k, side = (width if i else c), (h >> i, w >> i)
        found.append(
            (torch.randn(n, k, *side), torch.randn(width, k, 3, 3), torch.randn(n, width, *side))
        )
    return found


def timed(run, *given):
    """Seconds of one call."""
    began = time.perf_counter()
    run(*given)
    return time.perf_counter() - began


def timed_work(name, side):
    """One repetition of a work, in whatever process this is."""
    work = WORKS[name]
    return timed(work["limit"]) if side == "limit" else timed(work["run"], side)


def megabytes(side, ipc, steps):
    """Peak of one outer gradient above the process at rest, what loads once being there; in a fresh
    process."""
    outer(side, COLOUR, 32, 1, 1)
    setting(COLOUR, 32, K * ipc)
    return machine.peak(partial(outer, side, COLOUR, 32, ipc, steps))


def expert(shape, width, batch, penalty):
    """An expert's step as a work."""
    limit = partial(convolutions, shape, width, batch, (STEP, PENALTY) if penalty else (STEP,), 1)
    run = partial(train, shape=shape, width=width, batch=batch, penalty=penalty)
    words = f"expert{', gradient penalty' if penalty else ''}, {shape[1]}x{shape[2]} {'grey' if shape[0] == 1 else 'colour'}, width {width}, batch {batch}"  # noqa: E501
    return words, {"run": run, "limit": limit, "unit": "images/s", "amount": batch}


def iteration(ipc, steps):
    """An outer iteration as a work."""
    limit = partial(convolutions, COLOUR, 32, K * ipc, (UNROLLED,), steps)
    run = partial(outer, shape=COLOUR, width=32, ipc=ipc, steps=steps)
    return f"outer iteration, IPC {ipc}, N = {steps}, width 32", {
        "run": run,
        "limit": limit,
        "unit": "s",
    }


def evaluation(ipc, epochs):
    """Five networks on a distilled set as a work."""
    limit = partial(convolutions, COLOUR, 32, K * ipc, (STEP,), 5 * epochs)
    run = partial(train, shape=COLOUR, width=32, batch=K * ipc, epochs=epochs, repeats=5)
    return f"evaluation of five networks, IPC {ipc}, {epochs} epochs", {
        "run": run,
        "limit": limit,
        "unit": "s",
    }


WORKS = dict(
    [
        *(
            expert(shape, width, 256, penalty)
            for shape, width in ((GREY, 32), (COLOUR, 32), (COLOUR, 128))
            for penalty in (False, True)
        ),
        iteration(1, 10),
        iteration(10, 20),
        evaluation(1, 20),
        evaluation(10, 2),
    ]
)
SIDES = ("plain", "plain, settled", "ours", "limit")
SLOW = 30.0  # seconds of a work after which three times of each side are enough
SETTLED = "; plain given the engine's allocator settings"


def one_thread():
    """Plain PyTorch, but for the number of threads."""
    torch.set_num_threads(1)


def process(settled=True):
    """A process of one thread, with the engine's settings or PyTorch's own."""
    return ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=engine.settle if settled else one_thread
    )


def times(repeats, part):
    """Rows of all works: plain, plain with the engine's allocator settings, ours and the limit in
    turn."""
    pools = {"plain": process(False), "plain, settled": process(), "ours": process()}
    pools["limit"] = pools["ours"]
    for name, work in WORKS.items():
        if part not in name:
            continue
        found = {side: [] for side in SIDES}
        while len(found["limit"]) <= (3 if sum(map(sum, found.values())) > SLOW else repeats):
            for side in SIDES:
                found[side].append(
                    pools[side].submit(timed_work, name, side.split(",")[0]).result()
                )
        found = {side: seconds[1:] for side, seconds in found.items()}  # the first warms up
        middle = {side: median(values) for side, values in found.items()}
        shown = {side: work["amount"] / t if "amount" in work else t for side, t in middle.items()}
        for side, note in (("plain", ""), ("plain, settled", SETTLED)):
            row = {
                "work": name + note,
                "ours": shown["ours"],
                "plain": shown[side],
                "unit": work["unit"],
                "ratio": middle[side] / middle["ours"],
            }
            yield row | {"fraction_of_limit": middle["limit"] / middle["ours"]}
    for pool in pools.values():
        pool.shutdown()


def memory():
    """Rows of peak memory; each measured in a process of its own."""

    def peak(side, ipc, steps):
        with process(side == "ours") as pool:
            return pool.submit(megabytes, side, ipc, steps).result()

    ours, plainly = peak("ours", 10, 20), peak("plain", 10, 20)
    yield {
        "work": "memory of an outer iteration, IPC 10, N = 20, width 32",
        "ours": ours,
        "plain": plainly,
        "unit": "MB",
        "ratio": plainly / ours,
    }
    stored = 2 * len(setting(COLOUR, 32, K).theta) * 4 / 2**20  # theta and b of one step, MB
    growth = {
        side: (peak(side, 10, 80) - 80 * stored * (side == "ours"))
        / (peak(side, 10, 10) - 10 * stored * (side == "ours"))
        for side in ("ours", "plain")
    }
    work = (
        "memory at N = 80 over that at N = 10, IPC 10, width 32; ours beyond the stored theta and b"
    )
    yield {"work": work, **growth, "unit": "x", "ratio": growth["plain"] / growth["ours"]}


SIDE_BY_SIDE = {
    "experts": (partial(train, "ours", COLOUR, 32, 256, True, 2), 6),
    "outer iterations": (partial(outer, "ours", COLOUR, 32, 1, 20), 16),
    "evaluations": (partial(train, "ours", COLOUR, 32, 10, False, 60, 2), 16),
}


def do(task):
    """One task of the engine."""
    SIDE_BY_SIDE[task[0]][0]()


def same(task):
    """Predicted seconds: one task is like the other."""
    return 1.0


def throughput(repeats):
    """Rows of tasks a second, by two processes of the engine and by one."""
    with (
        process() as one,
        ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=engine.settle) as two,
    ):
        for name, (_, count) in SIDE_BY_SIDE.items():
            tasks = {(name, i): () for i in range(count)}
            found = {1: [], 2: []}
            for i in range(repeats + 1):
                for workers, pool in ((1, one), (2, two)):
                    progress = Progress(name, 1e9, every=1e9)  # a silent one
                    seconds = timed(
                        engine.run, tasks, engine.Job(do, same), progress, workers, pool
                    )
                    if i:
                        found[workers].append(count / seconds)
            ours, alone = median(found[2]), median(found[1])
            yield {
                "work": f"{name} side by side: two processes, and one as plain",
                "ours": ours,
                "plain": alone,
                "unit": "tasks/s",
                "ratio": ours / alone,
            }


def sentence(table):
    """What the README says of it."""
    rows = table.set_index("work")

    def factors(start, part=""):
        return " and ".join(
            f"{rows.ratio[name + SETTLED]:.1f}"
            for name in WORKS
            if name.startswith(start) and part in name
        )

    experts, wide = factors("expert", "colour, width 32"), factors("expert", "width 128")
    memory, growth = rows[rows.unit == "MB"].ratio.iloc[0], rows[rows.unit == "x"].ours.iloc[0]
    return (
        "Against plain PyTorch given the same allocator settings, one thread each "
        f"({table.machine.iloc[0]}): experts at 32 × 32 "
        f"pixels, without and with gradient penalty, train {experts} × as fast at width 32 and "
        f"{wide} × at width 128; an outer iteration at IPC 1 and 10 is {factors('outer')} × as "
        f"fast, the evaluation of five networks {factors('evaluation')} ×. An outer iteration at IPC 10, N = 20 needs {memory:.0f} × less memory, and at N = 80 {growth:.2f} × what it needs at N = 10."  # noqa: E501
    )


def keep(rows, about):
    """Write what is measured so far, in the place of what was measured of the same works before."""
    columns = ["work", "ours", "plain", "unit", "ratio", "fraction_of_limit", "threads", "machine"]
    threads = ["1 a process" if row["unit"] == "tasks/s" else "1" for row in rows]
    table, file = (
        pd.DataFrame(rows).assign(threads=threads, machine=about).reindex(columns=columns),
        RESULTS / "bench.csv",
    )
    if file.exists():
        before = pd.read_csv(file)
        before = before[before.machine == about].set_index("work")
        table = table.set_index("work")
        names = dict.fromkeys([*before.index, *table.index])
        table = (
            pd.concat([before.drop(table.index, errors="ignore"), table])
            .loc[list(names)]
            .reset_index()
        )
    write_whole(file, table.to_csv(index=False, float_format="%.4g", lineterminator="\n").encode())


def main(part=""):
    """Measure all works, or those with `part` in their names; print, keep."""
    began, rows, about = time.monotonic(), [], machine.described(machine.machine())
    print(about)
    if not part:
        (RESULTS / "bench.csv").unlink(missing_ok=True)
    for row in chain(times(5, part), () if part else chain(memory(), throughput(3))):
        rows.append(row)
        print(
            f"{clock(time.monotonic() - began)}: {row['work']}: {row['ratio']:.2f}",
            file=sys.stderr,
            flush=True,
        )
        keep(rows, about)
    table = pd.read_csv(RESULTS / "bench.csv")
    print(
        table.drop(columns="machine")
        .astype(object)
        .fillna("")
        .to_markdown(index=False, floatfmt=".3g")
    )
    pages.fill("bench", sentence(table))
    print(f"{clock(time.monotonic() - began)}; kept in {RESULTS / 'bench.csv'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
