"""One thread for torch: its threads spin against ours, and the tests' own arithmetic is small."""

import torch

torch.set_num_threads(1)
