"""A 7B-size archive, all holes: what is only looked at is not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from testsuite.ir.sparse_archive import export_fake, write_sparse
from testsuite.zoo.handvlm import HandVlm, Sizes

from tokopt.ir.errors import InputError
from tokopt.ir.load import load

SEVEN_B = Sizes(
    tower=1024, width=6144, heads=32, tower_layers=4, layers=15, vocabulary=32000,
    longest=1024, image=336, patch=14,
)  # fmt: skip
GB = 10**9
INSPECT = """
import sys
from pathlib import Path
from tokopt.cli.main import main
code = main(["inspect", sys.argv[1], "--json"])
status = Path("/proc/self/status").read_text()  # getrusage counts the parent's memory too
print(code, status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.pt2"
    pixels = torch.zeros(1, 3, SEVEN_B.image, SEVEN_B.image, dtype=torch.float16)
    ids = torch.zeros(1, SEVEN_B.visual + 24, dtype=torch.long)
    weights = write_sparse(export_fake(HandVlm, SEVEN_B, ids, pixels), path)
    status = path.stat()
    assert status.st_size > weights > 13 * GB
    if status.st_blocks * 512 > GB // 10:
        pytest.skip("this file system has no sparse files")
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks the Linux kernel")
def test_a_7b_archive_is_inspected_within_one_gigabyte_of_memory(large: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INSPECT, large], capture_output=True, text=True, check=True
    )
    code, peak = map(int, done.stderr.splitlines()[-1].split())
    peak *= 1024
    stacks = {stack["role"]: stack for stack in json.loads(done.stdout)["stacks"]}
    assert code == 0 and peak < GB, f"{peak / GB:.2f} GB resident"
    assert stacks["decoder"]["visual"] == stacks["vision"]["visual"] == SEVEN_B.visual
    assert large.stat().st_blocks * 512 < GB // 10, "inspecting filled the holes"


def test_what_is_computed_on_is_checked_first(large: Path) -> None:
    with pytest.raises(InputError, match="record 'data/weights/weight_0' is damaged"):
        load(large)
