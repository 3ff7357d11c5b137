"""How long a task takes, predicted from its settings, in seconds of one CPU core of about 2020.

Rough on purpose: it orders the tasks and tells the time left, which the run itself then calibrates.
"""

from __future__ import annotations

from .config import Distillation, Evaluation, Following, Measurement, Network, Selection, Settings

IMAGE = 5e-4  # seconds for forward and backward of one 3 x 32 x 32 image through a ConvNet of depth 3 and width 32
STEP = 2e-3  # seconds that a step costs whatever its batch
RELATIVE = {"convnet": 1.0, "alexnet": 2.0, "vgg11": 5.0, "resnet18": 6.0, "resnet18_ap": 8.0}  # cost of the networks at equal width


def image(network: Network, pixels: float) -> float:
    """Seconds for forward and backward of one image."""
    return IMAGE * RELATIVE[network.architecture] * (network.width / 32) ** 1.3 * pixels / 1024


def work(settings: Settings, train_images: int, classes: int, pixels: float) -> float:
    """Seconds for the task of `settings` on a data set of this size."""
    if isinstance(settings, Evaluation):
        n = train_images if settings.of.stage == "selections" and settings.of.method == "all" else classes * settings.of.ipc if settings.of.stage == "selections" else classes * settings.of.start.ipc
        runs = len(settings.factors) * settings.search_networks * (len(settings.factors) > 1) + 1.5 * settings.networks
        return runs * settings.epochs * (n * image(settings.network, pixels) + STEP * -(-n // settings.batch)) + 1
    if isinstance(settings, Selection | Following):
        return 1.0
    if isinstance(settings, Measurement):
        return 10.0
    if isinstance(settings, Distillation):
        n = classes * settings.start.ipc
        step = min(settings.batch or n, n) * image(settings.experts.network, pixels) + STEP
        check = settings.checks * settings.check_epochs * (n * image(settings.experts.network, pixels) + STEP)
        return settings.iterations * settings.inner_steps * 5 * step + check
    penalty = 4 if settings.penalty != "none" else 1
    return settings.epochs * train_images * image(settings.network, pixels) * penalty + 1
