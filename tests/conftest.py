"""One torch thread: two that share a busy core are many times slower."""

import torch

torch.set_num_threads(1)
