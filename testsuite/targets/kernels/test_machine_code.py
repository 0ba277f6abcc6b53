"""Kernels become machine code of GPUs that are not here, within what their registers hold.

8 s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from testsuite.exhaustive import thinned

from tokopt.targets.lowerings.aotinductor import KERNELS

pytest.importorskip("triton")

SHARED = 99 * 1024
"""What a program may have on the generation that has least, sm_89."""


@pytest.mark.parametrize("sm", thinned([80, 89, 90], 3))
def test_kernels_at_the_sizes_of_models_spill_no_registers(sm: int, tmp_path: Path) -> None:
    here = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("machine_code.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(sm)],
        capture_output=True, text=True, check=False, cwd=script.parents[3],
        env=here | {"PYTHONPATH": os.pathsep.join(["src", "."])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert {one["operator"] for one in found} == KERNELS
    assert all(one["stack"] == 0 and one["shared"] <= SHARED for one in found), found
