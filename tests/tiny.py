"""A set-up that takes seconds, from data to rows."""

from ddlib.runs.stages import Following
from ddlib.settings import Data, Distillation, Evaluation, Expert, Network, Selection

DATA = Data(name="digits")
NET = Network(width=8, depth=2)  # wide enough for the fast kernels
EXPERT = Expert(data=DATA, network=NET, epochs=3, lr=0.02)
START = Selection(data=DATA, method="representative", expert=EXPERT)
SET = Distillation(
    experts=EXPERT,
    n_experts=2,
    start=START,
    inner_steps=4,
    matched_epochs=2,
    start_epochs=2,
    batch=7,
    balance=True,
    perturbation=1.0,
    intermediate="adaptive",
    lr_images=30.0,
    iterations=6,
    checks=3,
    check_epochs=5,
    seed=3,
)
ROWS = Evaluation(of=SET, network=NET, networks=2, epochs=4, lrs=(0.003, 0.01), looks=2)
ALL = [EXPERT, EXPERT.at(1), START, SET, ROWS, Following(of=SET)]
