"""Free sizes that a program gets are none that it had."""

from pathlib import Path

from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import parts

from tokopt.ir.load import load
from tokopt.ir.new_inputs import new_size
from tokopt.ir.program import Program
from tokopt.ir.save import save


def test_a_new_size_is_another_than_those_of_a_loaded_program(tmp_path: Path) -> None:
    """torch numbers symbols by a hash below 100 and knows not those that were read from a file."""
    save(Program(parts(Sizes(layers=2, tower_layers=1), dynamic=True)), tmp_path / "a.pt2")
    graph = load(tmp_path / "a.pt2").graphs["decode"].graph
    shapes = [node.meta["val"].shape for node in graph.find_nodes(op="placeholder")]
    had = {str(size) for shape in shapes for size in shape if not isinstance(size, int)}
    made = [str(new_size(graph, "units")) for _ in range(120)]
    assert len(had) == 2 and len({*had, *made}) == 122
