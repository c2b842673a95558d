"""What every test shares: one thread, so that two workers do not fight, and no judging of time."""

import os
import signal

import hypothesis
import torch

torch.set_num_threads(1)
# a shell starts what runs in its background deaf to Ctrl-C, and some tests press it
signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI the same examples every time: a red run can be run again.
UNTIMED = dict(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("local", **UNTIMED)
hypothesis.settings.register_profile("ci", derandomize=True, **UNTIMED)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
