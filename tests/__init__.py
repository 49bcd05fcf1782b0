"""Tests of the package; see CONTRIBUTING.md."""

import os

# Threads of torch that wait for each other sleep. If they tried again and again, as they do on idle
# machines, tests of two threads would take twenty times as long beside other tests on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # is read when torch is imported
