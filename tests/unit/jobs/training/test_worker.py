"""The allocator keeps what was freed."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from egic.memory import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def work():
    for _ in range(20):
        torch.ones(10 * 2**20).sum()  # 40 MB: above what glibc ever keeps by itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again():
    def faults(how: str) -> tuple[str, int]:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        kept, number = done.stdout.split()
        return kept, int(number)

    kept, few = faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert few < 100 < faults("leave")[1]
