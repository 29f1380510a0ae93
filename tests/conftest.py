from __future__ import annotations

import os

# Tiny tensors: threads cost ten times what they bring, and pytest-xdist has its own processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
