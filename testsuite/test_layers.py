"""Import rules, read from the source text: who may import whom.

``ir`` imports torch, networkx, numpy, sympy and itself; ``passes`` and ``targets`` import ``ir``
and themselves, never each other; ``cli`` imports all; nothing imports ``cli`` but ``cli`` and
``__main__``.  No cycle, imports inside functions and under TYPE_CHECKING counted too.  Runtimes of
others stay in the layer that is for them.  The front door, ``tokopt/__init__.py``, names its public
objects for type checkers and imports nothing of ours until one is used.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent / "src" / "tokopt"

LAYERS = {
    "ir": {"ir"},
    "passes": {"ir", "passes"},
    "targets": {"ir", "targets"},
    "cli": {"ir", "passes", "targets", "cli"},
}
BASE = {"torch", "networkx", "numpy", "sympy"}
ONLY_IN = {
    "onnx": {"targets"},
    "onnxruntime": {"targets"},
    "onnxscript": {"targets"},
    "transformers": {"cli"},
    "rich": {"cli"},
}

Modules = dict[str, list[str]]


def read(root: Path) -> Modules:
    """Return every module of the package at ``root`` with all that it imports."""
    paths = [*root.glob("*.py"), *(p for layer in LAYERS for p in (root / layer).rglob("*.py"))]
    found: Modules = {}
    for path in sorted(paths):
        parts = ["tokopt", *path.relative_to(root).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = list(imports(at_run_time(tree) if name == "tokopt" else tree))
    for name, targets in found.items():  # of ``from module import name``, is the name a module?
        found[name] = [
            t.rpartition(".")[0] if is_ours(t) and t not in found else t for t in targets
        ]
    return found


def at_run_time(tree: ast.Module) -> ast.Module:
    """Return a file without its ``if TYPE_CHECKING:`` blocks."""
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(body, [])


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported anywhere in a file: ``tokopt.ir.axis.Axis``, ``torch.fx.Node``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def is_ours(target: str) -> bool:
    return target.partition(".")[0] == "tokopt"


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def violations(modules: Modules) -> list[str]:
    """Return every import that breaks a rule, and every cycle."""
    found = []
    for name, targets in modules.items():
        layer = layer_of(name)
        for target in targets:
            top = target.partition(".")[0]
            if not top:
                found.append(f"{name} imports {target}, relative to itself")
            elif is_ours(target):
                other = layer_of(target)
                if layer and other and other not in LAYERS[layer]:
                    found.append(f"{name} imports {target}")
                if not layer and other == "cli" and name != "tokopt.__main__":
                    found.append(f"{name} imports {target}")
            elif layer not in ONLY_IN.get(top, {layer}):
                found.append(f"{name} imports {top}")
            elif layer == "ir" and top not in BASE and top not in sys.stdlib_module_names:
                found.append(f"{name} imports {top}")
    edges = [(a, b) for a, targets in modules.items() for b in targets if b in modules]
    graph = nx.DiGraph(edges)
    loops = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    loops += [[name] for name in nx.nodes_with_selfloops(graph)]
    return found + [f"import cycle: {', '.join(loop)}" for loop in loops]


def test_the_package_keeps_its_import_rules() -> None:
    modules = read(ROOT)
    assert len(modules) > 60 and {layer_of(name) for name in modules} == {"", *LAYERS}
    assert violations(modules) == []


def test_the_layers_are_links_to_the_folders_at_the_root() -> None:
    for layer in LAYERS:
        assert (ROOT / layer).is_dir(), (
            f"git config core.symlinks true && git checkout src ({layer})"
        )
        assert (ROOT / layer).resolve() == (ROOT.parent.parent / layer).resolve()


def test_every_layer_is_covered_by_a_rule() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(LAYERS)


SOUND = {
    "__init__.py": "if TYPE_CHECKING:\n    from tokopt.cli.main import main as main",
    "__main__.py": "from tokopt.cli.main import main",
    "ir/__init__.py": "",
    "ir/axis.py": "import torch, re\nfrom networkx import DiGraph",
    "ir/facts.py": "from tokopt.ir.axis import Axis\nfrom tokopt.ir import axis",
    "passes/__init__.py": "",
    "passes/cut.py": "from tokopt.ir.facts import Facts\nimport optuna",
    "passes/search/__init__.py": "",
    "passes/search/space.py": "import tokopt.passes.cut",
    "targets/__init__.py": "",
    "targets/onnx.py": "import onnxruntime\nfrom tokopt.ir import facts",
    "cli/__init__.py": "",
    "cli/main.py": "from tokopt.passes.cut import cut\nimport tokopt, tokopt.targets.onnx",
    "cli/export.py": "import transformers, rich",
}


def tree(root: Path, changed: dict[str, str]) -> Path:
    """Write the made-up package with some files changed."""
    for name, text in {**SOUND, **changed}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_sound_tree_has_no_violations(tmp_path: Path) -> None:
    assert violations(read(tree(tmp_path, {}))) == []


@pytest.mark.parametrize(
    ("file", "text", "violation"),
    [
        ("ir/axis.py", "import tokopt.passes.cut", "tokopt.ir.axis imports tokopt.passes.cut"),
        ("ir/axis.py", "from tokopt import passes", "tokopt.ir.axis imports tokopt.passes"),
        ("ir/axis.py", "import onnx", "tokopt.ir.axis imports onnx"),
        ("ir/axis.py", "import yaml", "tokopt.ir.axis imports yaml"),
        ("ir/axis.py", "def f():\n    import rich.table", "tokopt.ir.axis imports rich"),
        (
            "ir/axis.py",
            "def f():\n    from tokopt.cli import main",
            "tokopt.ir.axis imports tokopt.cli.main",
        ),
        ("ir/axis.py", "from . import facts", "tokopt.ir.axis imports ..facts"),
        (
            "passes/cut.py",
            "import tokopt.targets.onnx",
            "tokopt.passes.cut imports tokopt.targets.onnx",
        ),
        ("passes/cut.py", "import onnxruntime", "tokopt.passes.cut imports onnxruntime"),
        ("passes/search/space.py", "from transformers import X", "imports transformers"),
        ("targets/onnx.py", "from tokopt.passes.cut import cut", "tokopt.targets.onnx imports"),
        ("targets/onnx.py", "import transformers", "tokopt.targets.onnx imports transformers"),
        ("cli/main.py", "import onnx", "tokopt.cli.main imports onnx"),
        ("__init__.py", "from tokopt.cli.main import main", "tokopt imports tokopt.cli.main"),
        (
            "ir/axis.py",
            "def f():\n    from tokopt.ir.facts import Facts",
            "import cycle: tokopt.ir.axis, tokopt.ir.facts",
        ),
        (
            "ir/axis.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tokopt.ir.facts",
            "import cycle: tokopt.ir.axis, tokopt.ir.facts",
        ),
        ("ir/axis.py", "import tokopt.ir.axis", "import cycle: tokopt.ir.axis"),
    ],
)
def test_a_violation_is_seen(file: str, text: str, violation: str, tmp_path: Path) -> None:
    found = violations(read(tree(tmp_path, {file: text})))
    assert [v for v in found if violation in v]
