"""What every test shares: one thread, so that two workers do not fight, and no flaky deadlines."""

import os

import hypothesis
import torch

torch.set_num_threads(1)

# In CI the same examples every time: a red run can be run again.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
