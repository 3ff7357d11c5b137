"""How long a task takes, predicted from its settings, in seconds of one CPU core of about 2020.

Rough on purpose: it orders the tasks and tells the time left, which the run itself then calibrates.
"""

from __future__ import annotations

from ddlib.settings import (
    Condensation,
    Continual,
    Distilled,
    Evaluation,
    Expert,
    Film,
    Measurement,
    Network,
    Selection,
    Settings,
)

IMAGE = 4e-4  # seconds for forward and backward of one 3 x 32 x 32 image through a ConvNet of depth 3 and width 32
STEP = 1e-3  # seconds that a step costs whatever its batch
LOOK = 500  # a look at validation and test images costs as much as training on so many
RELATIVE = {
    "convnet": 1.0,
    "alexnet": 4.0,
    "vgg11": 7.0,
    "resnet18": 22.0,
    "resnet18_ap": 26.0,
    "vit": 3.0,
}  # cost of the networks at equal width


def image(network: Network, pixels: float) -> float:
    """Seconds for forward and backward of one image."""
    return IMAGE * RELATIVE[network.architecture] * (network.width / 32) ** 1.3 * pixels / 1024


def size(made: Distilled | Selection, train_images: int, classes: int) -> int:
    """How many images a set holds."""
    if isinstance(made, Selection):
        return train_images if made.method == "all" else classes * made.ipc
    return classes * made.start.ipc


def runs(settings: Evaluation, scored: float = 1.5) -> float:
    """Networks that an evaluation trains: those that choose the lr, and `scored` times those that are scored, once where the set's own lr is chosen, else twice."""
    return (
        len(settings.factors) * settings.search_networks * (len(settings.factors) > 1)
        + scored * settings.networks
    )


def work(settings: Settings, train_images: int, classes: int, pixels: float) -> float:
    """Seconds for the task of `settings` on a data set of this size."""
    if isinstance(settings, Evaluation):
        n, each = size(settings.of, train_images, classes), image(settings.network, pixels)
        return runs(settings) * (
            settings.epochs * (n * each + STEP * -(-n // settings.batch))
            + settings.looks * LOOK * each
        )
    if isinstance(settings, Distilled):
        n, each = size(settings, train_images, classes), image(settings.network, pixels)
        check = settings.check_epochs * (n * each + STEP) + LOOK * each
        if isinstance(settings, Condensation):
            return (
                settings.iterations
                * turn(settings, min(settings.batch_real * classes, train_images), n, classes, each)
                + settings.checks * check
            )
        inner = min(settings.batch or n, n) * each + STEP
        return 4.0 * settings.iterations * settings.inner_steps * inner + settings.checks * check
    if isinstance(settings, Film):
        return work(settings.of.model_copy(update={"checks": 0}), train_images, classes, pixels)
    if isinstance(settings, Expert):
        once = (
            train_images
            * (3.5 if settings.penalty != "none" else 1)
            * (2 if settings.sharpness else 1)
            + LOOK
        )
        return settings.epochs * once * image(settings.network, pixels)
    if isinstance(settings, Continual):
        met = (
            settings.tasks + 1
        ) / 2  # times that all images, and as many test images, are gone through
        shown = train_images * (met if settings.memory else 1)
        return settings.epochs * (
            shown * image(settings.network, pixels) + STEP * shown / settings.batch
        ) + met * LOOK * image(settings.network, pixels)
    return 10.0 if isinstance(settings, Measurement) else 2.0


def turn(settings: Condensation, real: int, n: int, classes: int, each: float) -> float:
    """Seconds with one network: `outer` matchings of n images with `real` ones, class by class, and the training between them."""
    passes = (
        real / 3 + n if settings.method == "dm" else real + 4 * n
    )  # of the real images DM needs no derivative, DC and DSA the first
    training = settings.inner * (n * each + STEP * -(-n // settings.batch))
    return settings.outer * (passes * each + 2 * classes * STEP) + (settings.outer - 1) * training
