"""For all tests: one thread, and Hypothesis without a deadline, as machines may be busy."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose much on a busy core
settings.register_profile("qtool", deadline=None)
settings.load_profile("qtool")
