"""Settings of every test run."""

import os

# As in pipeline.cli: idle threads of torch sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
