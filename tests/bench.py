"""What the fast forms gain over plain PyTorch on this machine: `make bench` prints the table and
keeps it in results/bench/bench.csv.

Each time is the median of several, the sides taken in turn within one run, one thread each, in a
process of its own: `plain` PyTorch (tests/plain.py) and `ours`, both with the engine's allocator
settings. The limit is what plain PyTorch's convolutions alone take, inputs ready and nothing in
between; kernels of our own may beat it. A ratio above 1 speaks for ours, whatever the unit.
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
from ddlib.method.student import MEMORY, InnerLoop, InnerLoss, adjoint
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
COLOUR = (3, 32, 32)  # CIFAR's shape
GREY, PADDED = (1, 28, 28), (1, 32, 32)  # FashionMNIST's, and padded as the field's network sees it


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


def outer(side, shape, width, ipc, steps, memory=MEMORY):
    """One outer gradient."""
    n = K * ipc
    s, lr = setting(shape, width, n), torch.tensor(0.01)
    draws = augment.draws([n] * steps, EVERY, generator("draws"), "cpu")
    if side == "ours":
        loss = InnerLoss(s.net, s.y, [torch.arange(n)] * steps, draws, 1.0)
        loop = InnerLoop(loss, s.theta, s.x, lr, steps, 0.9, memory)
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


def megabytes(side, steps, memory):
    """Peak of one outer gradient at IPC 10 above the process at rest, what loads once being there;
    in a fresh process."""
    outer(side, COLOUR, 32, 1, 1)
    setting(COLOUR, 32, K * 10)
    return machine.peak(partial(outer, side, COLOUR, 32, 10, steps, memory))


def expert(shape, width, batch, penalty):
    """An expert's step as a work."""
    limit = partial(convolutions, shape, width, batch, (STEP, PENALTY) if penalty else (STEP,), 1)
    run = partial(train, shape=shape, width=width, batch=batch, penalty=penalty)
    kind = f"{shape[1]}x{shape[2]} {'grey' if shape[0] == 1 else 'colour'}"
    words = f"expert{', gradient penalty' * penalty}, {kind}, width {width}, batch {batch}"
    return words, {"run": run, "limit": limit, "unit": "images/s", "amount": batch}


def iteration(ipc, steps, shape=COLOUR, width=32):
    """An outer iteration as a work."""
    limit = partial(convolutions, shape, width, K * ipc, (UNROLLED,), steps)
    run = partial(outer, shape=shape, width=width, ipc=ipc, steps=steps)
    images = "" if shape == COLOUR else ", 28x28 grey padded to 32x32"
    words = f"outer iteration, IPC {ipc}, N = {steps}, width {width}{images}"
    return words, {"run": run, "limit": limit, "unit": "s"}


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
        iteration(1, 50),
        iteration(10, 20),
        iteration(1, 50, PADDED, 128),
        evaluation(1, 20),
        evaluation(10, 2),
    ]
)
SIDES = ("plain", "ours", "limit")
SLOW = 20.0  # seconds of a work after which three times of each side are enough


def process(workers=1):
    """Processes of one thread with the engine's settings."""
    spawn = get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=engine.settle)


def times(repeats, part):
    """Rows of all works: plain, ours and the limit in turn."""
    pools = {side: process() for side in SIDES}
    for name, work in WORKS.items():
        if part not in name:
            continue
        found = {side: [] for side in SIDES}
        while len(found["limit"]) <= (3 if sum(map(sum, found.values())) > SLOW else repeats):
            for side in SIDES:
                found[side].append(pools[side].submit(timed_work, name, side).result())
        found = {side: seconds[1:] for side, seconds in found.items()}  # the first warms up
        middle = {side: median(values) for side, values in found.items()}
        shown = {side: work["amount"] / t if "amount" in work else t for side, t in middle.items()}
        row = {"work": name, "ours": shown["ours"], "plain": shown["plain"], "unit": work["unit"]}
        row["ratio"] = middle["plain"] / middle["ours"]
        yield row | {"fraction_of_limit": middle["limit"] / middle["ours"]}
    for pool in pools.values():
        pool.shutdown()


def memory():
    """Rows of peak memory: ours medians of three, each measured in a process of its own."""

    def once(side, steps, budget):
        with process() as pool:
            return pool.submit(megabytes, side, steps, budget).result()

    def peak(side, steps, budget=MEMORY):
        return median(once(side, steps, budget) for _ in range(3 if side == "ours" else 1))

    plainly, work = peak("plain", 20), "memory of an outer iteration, IPC 10, N = 20, width 32"
    for budget, note in ((MEMORY, "MEMORY=160, the default"), (0, "MEMORY=0")):
        row = {"work": f"{work}, {note}", "ours": peak("ours", 20, budget), "plain": plainly}
        yield row | {"unit": "MB", "ratio": plainly / row["ours"]}
    stored = 2 * len(setting(COLOUR, 32, K).theta) * 4 / 2**20  # theta and b of one step, MB
    plainly = peak("plain", 80) / peak("plain", 10)
    for budget in (MEMORY, 0):
        longest, shortest = (peak("ours", n, budget) - n * stored for n in (80, 10))
        work = "memory at N = 80 over that at N = 10, IPC 10, width 32; ours beyond theta and b"
        row = {"work": f"{work}, MEMORY={budget >> 20}", "ours": longest / shortest}
        yield row | {"plain": plainly, "unit": "x", "ratio": plainly / row["ours"]}


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
    with process() as one, process(2) as two:
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
    """What the pages say of it."""
    rows = table.set_index("work")

    def factors(start, part=""):
        found = [f"{rows.ratio[name]:.1f}" for name in WORKS if name.startswith(start)]
        names = [name for name in WORKS if name.startswith(start)]
        return " and ".join(x for x, name in zip(found, names, strict=True) if part in name)

    experts, wide = factors("expert", "colour, width 32"), factors("expert", "width 128")
    outer, padded = factors("outer", "width 32"), factors("outer", "width 128")
    outer = outer.replace(" and ", ", ", 1)
    kept, none = rows[rows.unit == "MB"].ratio
    growth = rows[rows.unit == "x"].ours.max()
    return (
        "Against plain PyTorch given the same allocator settings, one thread each "
        f"({table.machine.iloc[0]}): an outer iteration at width 32 is {outer} × as fast (IPC 1 "
        f"with N = 10 and N = 50, IPC 10 with N = 20), at width 128 {padded} × (IPC 1, N = 50, "
        f"28 × 28 grey pixels padded to 32 × 32); the evaluation of five networks {factors('eval')}"
        f" × (IPC 1 and 10); experts at 32 × 32 pixels, without and with gradient penalty, "
        f"{experts} × at width 32 and {wide} × at width 128. An outer iteration at IPC 10, N = 20 "
        f"needs {kept:.0f} × less memory, with `MEMORY=0` {none:.0f} × less; at N = 80 it needs "
        f"at most {growth:.2f} × what it needs at N = 10."
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
