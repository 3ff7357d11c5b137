"""What a GPU is to prove, the most important first: `python tests/device.py --out FOLDER`.

Parity comes before speed, and speed before rows. What is done is written to FOLDER/device.json at
once. A run stops when its minutes are over, and the next one goes on: given the same folder, it
skips what is there and unpacks the rows and sets of the profile that were made so far. With --pack
it gathers, on a machine with a network, what one without a network lacks; nothing else is done.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import yaml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import plain  # noqa: E402
from ddlib.method import augment, functional  # noqa: E402
from ddlib.method.functional import CrossEntropy  # noqa: E402
from ddlib.method.student import EXACT, InnerLoop, InnerLoss  # noqa: E402
from ddlib.method.train import Batch, gradient, optimiser_for  # noqa: E402
from ddlib.runs.store import read  # noqa: E402
from ddlib.settings import Network, Recipe, generator  # noqa: E402

K, SHAPE, EVERY = 10, (1, 28, 28), tuple(augment.STRATEGIES)
SCALES = {
    "paper": {"width": 128, "steps": (10, 25, 50), "batch": 256, "repeats": 9},
    "tiny": {"width": 8, "steps": (2, 3), "batch": 8, "repeats": 2},
}
PACKAGES = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "safetensors")
SMALL = ("rows", "sets", "notes", "selections")  # parts of a store that come back
ENDING = 30  # seconds that an interrupted run gets to keep what it has


def problem(device, width, n, dtype=torch.float32):
    """A network, parameters, a target, n images and their classes."""
    chance = generator("device", width, n)
    net = functional.network(Network(width=width), SHAPE, K)
    theta, target = net.initial(chance), net.initial(chance)
    x = torch.randn(n, *SHAPE, generator=chance)
    return net, *(t.to(device, dtype) for t in (theta, target, x)), (torch.arange(n) % K).to(device)


def outer(form, device, width, steps, dtype=torch.float32):
    """One outer gradient at IPC 1: "plain" is tests/plain.py's, others are the library's."""
    net, theta, target, x, y = problem(device, width, K, dtype)
    lr = torch.tensor(0.01, device=device, dtype=dtype)
    draws = augment.draws([K] * steps, EVERY, generator("draws"), device)
    if form == "plain":
        module = plain.ConvNet(SHAPE, K, width, 3).to(device)
        return plain.outer(module, theta, x, y, lr, steps, 0.9, draws, target)
    every = [torch.arange(K, device=device)] * steps
    loop = InnerLoop(InnerLoss(net, y, every, draws, 1.0), theta, x, lr, steps, 0.9)
    return EXACT[form](loop, lambda path: (path[steps] - target).square().sum(), [steps])


def done(device):
    """Wait for what was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run, device, repeats):
    """The median of several calls, after one that is not counted."""
    run(), done(device)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run(), done(device)
        taken.append(time.perf_counter() - began)
    return median(taken)


def launches(run, device):
    """Kernels that one call launches; on a CPU, operators."""
    kind = torch.profiler.ProfilerActivity
    activities = [kind.CPU, kind.CUDA] if device == "cuda" else [kind.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        run(), done(device)
    on_device = torch.autograd.DeviceType.CUDA if device == "cuda" else None
    return sum(on_device in (None, event.device_type) for event in profile.events())


def one_gradient(device, scale):
    """Adjoint and unroll are one gradient, in float64."""
    forms = (outer(form, device, 16, max(scale["steps"]), torch.float64) for form in EXACT)
    first, second = forms
    gaps = {
        n: float((a - b).abs().max() / b.abs().max())
        for n, a, b in zip(("value", "images", "lr", "end"), first, second, strict=False)
    }
    assert max(gaps.values()) < 1e-9, gaps
    return gaps


def every_stage(device, scale, home):
    """How far each stage parts on the device from the CPU, relative to its largest number."""
    code = "from tiny import ALL; from ddlib.runs.run import ensure; from ddlib.runs.store import "
    code += "Store; import sys; ensure(ALL, Store(sys.argv[1]), workers=1)"
    for name in {"cpu", device}:
        environment = os.environ | {"DEVICE": name, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
        subprocess.run([sys.executable, "-c", code, home / name], env=environment, check=True)
    parted = {}
    for file in sorted((home / "cpu").glob("*/*.safetensors")):
        here, there = (
            read(folder / file.relative_to(home / "cpu")).tensors
            for folder in (home / "cpu", home / device)
        )
        for name, t in here.items():
            if t.is_floating_point() and t.numel():
                gap = float((t - there[name]).abs().max() / t.abs().max().clamp_min(1e-12))
                stage = f"{file.parent.name}: {name}"
                parted[stage] = max(gap, parted.get(stage, 0.0))
    return parted


def suite(device, scale):
    """Which tests of the method pass there."""
    tests = (
        [*HERE.glob("test_method_*.py")]
        if scale is SCALES["paper"]
        else [HERE / "test_method_smoothness.py"]
    )
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)]
    said = subprocess.run(call, env=os.environ | {"DEVICE": device}, capture_output=True, text=True)
    lines = said.stdout.strip().splitlines()
    return {"summary": lines[-1], "failed": [line for line in lines if line.startswith("FAILED")]}


def speeds(device, scale):
    """Experts, one inner step and one pull, and an outer iteration in three forms."""
    width, batch, repeats = scale["width"], scale["batch"], scale["repeats"]
    net, theta, _, x, y = problem(device, width, batch)
    found = {}
    for penalty in ("none", "per_sample"):
        recipe = Recipe(epochs=1, batch=batch, lr=0.01, penalty=penalty)
        draws = augment.draws([batch], EVERY, generator("draws"), device)[0]

        def step(recipe=recipe, draws=draws):
            point = theta.clone()
            point.grad = gradient(net, point, Batch(x, y, draws), recipe)[1]
            optimiser_for(point, recipe, 0.01).step()

        found[f"expert images/s, penalty {penalty}"] = batch / seconds(step, device, repeats)
    few, classes = x[:K], y[:K]
    for name, run in {
        "inner step": lambda: net.gradient(theta, few, CrossEntropy(classes)),
        "pull": lambda: net.pull(theta, few, CrossEntropy(classes), theta),
    }.items():
        found[f"{name}, ms"] = 1e3 * seconds(run, device, repeats)
        found[f"{name}, launches"] = launches(run, device)
    for steps in scale["steps"]:
        for form in ("adjoint", "unroll", "plain"):
            run = partial(outer, form, device, width, steps)
            place = f"outer iteration, IPC 1, N = {steps}, {form}"
            found[f"{place}: s"] = seconds(run, device, repeats)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                run(), done(device)
                found[f"{place}: MB"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def side_by_side(device, scale):
    """Outer iterations per second of several processes on one card."""
    code = "import device, sys; d, w, n, r = sys.argv[1:]; from functools import partial; "
    code += "print(device.seconds(partial(device.outer, 'adjoint', d, int(w), int(n)), d, int(r)))"
    given = [device, *map(str, (scale["width"], scale["steps"][-1], scale["repeats"]))]
    found = {}
    for count in (1, 2, 4, 8) if scale is SCALES["paper"] else (1,):
        call = [sys.executable, "-c", code, *given]
        many = [
            subprocess.Popen(call, cwd=HERE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        found[f"{count} processes"] = sum(1 / float(one.communicate()[0]) for one in many)
    return found


STEPS = {f.__name__: f for f in (one_gradient, every_stage, suite, speeds, side_by_side)}


def rows(profile, study, device, out, left):
    """The profile's artefacts, as far as the time goes; then rows and sets are packed."""
    store, packed = out / "store", out / "store.tar"
    store.mkdir(exist_ok=True)
    if (out / "packed/data").is_dir() and not (store / "data").exists():
        (store / "data").symlink_to((out / "packed/data").resolve())
    if packed.exists():
        with tarfile.open(packed) as archive:
            archive.extractall(store, filter="data")
    environment = os.environ | {
        "DEVICE": device,
        "STORE": str(store),
        "PYTHONPATH": str(HERE.parent),
    }
    call = [sys.executable, "-m", "ddlib", "run", study, "--profile", profile]
    work = subprocess.Popen(call, env=environment, start_new_session=True)
    try:
        code = work.wait(max(1.0, left - ENDING))
    except subprocess.TimeoutExpired:
        os.killpg(work.pid, signal.SIGINT)
        try:
            code = work.wait(ENDING)
        except subprocess.TimeoutExpired:
            os.killpg(work.pid, signal.SIGKILL)
            code = work.wait()
    with tarfile.open(packed, "w") as archive:
        for part in SMALL:
            if (store / part).is_dir():
                archive.add(store / part, part)
    return code == 0


def pack(folder):
    """Gather what a machine without a network lacks: a few packages, for its Python, and data."""
    fetch = [sys.executable, "-m", "ddlib", "fetch", "fashion_mnist"]
    subprocess.run(fetch, env=os.environ | {"STORE": str(folder)}, check=True)
    call = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    call += ["--python-version", "3.12", "--implementation", "cp", "-d", folder / "wheels"]
    for tag in ("2_28", "2_17"):
        call += ["--platform", f"manylinux_{tag}_x86_64"]
    subprocess.run([*call, "--platform", "manylinux2014_x86_64", *PACKAGES], check=True)


def main(arguments=None):
    """One call; it returns 0 where all is done, 1 where time was up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--scale", default="paper", choices=[*SCALES])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--profile", default="fashion-gpu")
    parser.add_argument("--study", default="main")
    parser.add_argument("--pack", action="store_true", help="gather packages and data, and end")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.pack:
        pack(asked.out / "packed")
        return 0
    ends, scale = time.monotonic() + 60 * asked.minutes, SCALES[asked.scale]
    file = asked.out / "device.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    gpu = torch.cuda.get_device_name() if asked.device == "cuda" else "none"
    found |= {"torch": torch.__version__, "gpu": gpu, "cuda": torch.version.cuda}
    for name, step in STEPS.items():
        if name in found or time.monotonic() > ends:
            continue
        began = time.monotonic()
        given = (asked.out / "stages",) if step is every_stage else ()
        found[name] = step(asked.device, scale, *given)
        found[name] |= {"took": time.monotonic() - began}
        file.write_text(json.dumps(found, indent=1))
        print(yaml.safe_dump({name: found[name]}, sort_keys=False), flush=True)
    complete = rows(asked.profile, asked.study, asked.device, asked.out, ends - time.monotonic())
    print(f"{asked.profile}: {'complete' if complete else 'call again to go on'}")
    return 0 if complete and STEPS.keys() <= found.keys() else 1


if __name__ == "__main__":
    sys.exit(main())
