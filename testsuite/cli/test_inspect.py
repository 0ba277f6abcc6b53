"""Goldens of ``tokopt inspect``; new ones: ``pytest testsuite/cli/test_inspect.py --regenerate``.

What the goldens say was compared by hand with the configurations in ``testsuite/zoo``; the numbers
so found are in ``CONFIGURED``, typed in and not computed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.export import ExportedProgram

from tokopt.cli.console import rendered
from tokopt.cli.describe import describe_program
from tokopt.cli.inspect_tables import tables
from tokopt.cli.main import main
from tokopt.ir.facts import analyse
from tokopt.ir.program import Program
from tokopt.ir.save import save

Normal = Callable[[str], ExportedProgram]

FAMILIES = ["llava", "qwen2_5_vl", "dinov2", "handvit"]

# role: rows, visual, protected, relay, then of every layer: heads, width, keys, windows, form.
#
# llava: images 48x48 in patches of 8 are 36, with the class row 37; the tower has 4 layers and
#   vision_feature_layer -2 leaves 3 that are read; 64 / 4 heads = 16.  36 rows replace 36
#   placeholders of 45 ids; 4 Llama layers of 4 heads (the 2 key heads are expanded in the graph).
# qwen2_5_vl: a grid of 8x12 is 96 patches; windows of 32 pixels are 4x4 patches: 6 of 16 rows;
#   block 3 of 0-3 is the only one in fullatt_block_indexes.  The 2x2 merger leaves 24 of 34 ids.
# dinov2: 36 patches, a class row and 4 registers in front.  handvit: 36 patches and a class row,
#   4 heads of 48 / 4 = 12, attention written out.
CONFIGURED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llava": {
        "vision": (37, 36, 1, 0, [(4, 16, 37, 1, "fused")] * 3),
        "decoder": (45, 36, 0, -1, [(4, 16, 45, 1, "fused")] * 4),
    },
    "qwen2_5_vl": {
        "vision": (96, 96, 0, None, [(4, 16, 16, 6, "fused")] * 3 + [(4, 16, 96, 1, "fused")]),
        "decoder": (34, 24, 0, -1, [(4, 16, 34, 1, "fused")] * 4),
    },
    "dinov2": {"vision": (41, 36, 5, 0, [(4, 16, 41, 1, "fused")] * 4)},
    "handvit": {"vision": (37, 36, 1, 0, [(4, 12, 37, 1, "explicit")] * 4)},
}
BUDGET = {
    "llava": ("decoder", 36, [0, 1, 2, 3]),
    "qwen2_5_vl": ("decoder", 24, [0, 1, 2, 3]),
    "dinov2": ("vision", 36, [0, 1, 2, 3]),
    "handvit": ("vision", 36, [0, 1, 2, 3]),
}


def described(exported: ExportedProgram) -> dict[str, Any]:
    """Describe a zoo program, without the lines of installed libraries."""
    program = Program.of(exported, "model.pt2")
    found = describe_program(program, analyse(program.main))
    for stack in found["stacks"]:
        sites = stack["sites"]
        reasons = [site[key] for site in sites for key in ("barrier", "grouped_by")]
        for call in (stack["merge"], *reasons):
            if call is not None:
                call["line"] = None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_are_the_golden_ones(
    family: str, normal: Normal, golden: Callable[[str, str], None]
) -> None:
    text = rendered(*tables(described(normal(family))))
    assert max(map(len, text.splitlines())) <= 100
    golden(f"inspect_{family}.txt", text)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_json_is_the_golden_one(
    family: str, normal: Normal, golden: Callable[[str, str], None]
) -> None:
    text = json.dumps(described(normal(family)), indent=1)
    golden(f"inspect_{family}.json", text + "\n")


@pytest.mark.parametrize(
    ("family", "role"), [(family, role) for family, stacks in CONFIGURED.items() for role in stacks]
)
def test_what_is_found_is_what_the_configuration_says(
    family: str, role: str, normal: Normal
) -> None:
    stacks = {stack["role"]: stack for stack in described(normal(family))["stacks"]}
    assert list(stacks) == list(CONFIGURED[family])
    stack = stacks[role]
    keys = ("heads", "width", "keys", "windows", "attention")
    layers = [tuple(layer[key] for key in keys) for layer in stack["layers"]]
    assert [layer["depth"] for layer in stack["layers"]] == list(range(len(layers)))
    found = (*(stack[key] for key in ("rows", "visual", "protected", "relay")), layers)
    assert found == CONFIGURED[family][role]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_budget_counts_the_consumers_layers(family: str, normal: Normal) -> None:
    budget = described(normal(family))["budget"]
    assert (budget["stack"], budget["visual"], budget["layers"]) == BUDGET[family]


@pytest.mark.parametrize("family", ["llava", "dinov2", "handvit"])
def test_every_site_of_a_plain_tower_and_its_decoder_is_legal(family: str, normal: Normal) -> None:
    for stack in described(normal(family))["stacks"]:
        last = [] if stack["merge"] else [f"{stack['role']}:end"]
        names = [f"{stack['role']}:{depth}" for depth in range(len(stack["layers"]))] + last
        assert [site["name"] for site in stack["sites"]] == names
        assert all(site["legal"] and site["group"] == 1 for site in stack["sites"])


def test_windows_leave_whole_and_the_merger_takes_groups_of_four(normal: Normal) -> None:
    vision = described(normal("qwen2_5_vl"))["stacks"][0]
    legal = {site["name"]: (site["legal"], site["group"]) for site in vision["sites"]}
    assert [legal[f"vision:{depth}"] for depth in range(3)] == [(True, 16)] * 3
    assert legal["vision:3"] == legal["vision:end"] == (True, 4)


def test_the_command_reads_a_file_and_prints_tables_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from testsuite.zoo import handvit

    model = tmp_path / "model.pt2"
    save(Program.of(handvit.build(depth=1).exported), model)
    assert main(["inspect", str(model)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{model}: model, ") and "vision:0 … vision:end" in out
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        f"loading {model}",
        "normalizing",
        "analysing",
    ]
    assert main(["inspect", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == str(model)
    assert found["stacks"][0]["sites"][0]["name"] == "vision:0"


def test_the_line_of_the_users_code_is_shown_at_a_barrier(normal: Normal) -> None:
    program = Program.of(normal("qwen2_5_vl"))
    found = describe_program(program, analyse(program.main))
    text = " ".join(rendered(*tables(found)).split())
    assert "in model.model.visual" in text and "at modeling_qwen2_5_vl.py:" in text


def test_metrics_are_shown_as_tables_and_in_json(
    normal: Normal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.pt2"
    save(Program.of(normal("llava")), file)
    assert main(["inspect", str(file), "--metrics", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    measured, work = said["metrics"], said["work"]
    assert work[-1]["depth"] is None and all(one["flops"] > 0 < one["bytes"] for one in work)
    layers = measured["stacks"]["decoder"]["layers"]
    assert [layer["depth"] for layer in layers] == [0, 1, 2, 3]
    late = measured["stacks"]["decoder"]["late"]["mdi"]
    assert late == pytest.approx((layers[2]["mdi"] + layers[3]["mdi"]) / 2)
    assert measured["stacks"]["vision"]["early"]["mdi"] is None
    assert main(["inspect", str(file), "--metrics"]) == 0
    text = capsys.readouterr().out
    assert "decoder, measured" in text and f"{layers[3]['mdi']:.3g}" in text
    assert main(["inspect", str(file), "--inputs", "x.safetensors"]) == 2
