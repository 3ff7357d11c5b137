"""One thread, as the engine's processes have: the same bytes on every machine with the same wheels, and no fight over cores."""

import torch

torch.set_num_threads(1)
