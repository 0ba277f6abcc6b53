"""Archives that run code when torch loads or runs them; ``load`` must not.

Every payload only touches a marker file in ``tmp_path``.  Each archive is also given to torch, to
see that the marker appears: a test whose attack is none could not fail.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from testsuite.ir.load_archives import Json, dynamic, plain, renamed, rewritten, saved, written
from torch import Tensor, nn

from tokopt.ir.errors import InputError
from tokopt.ir.load import load

Attack = Callable[[bytes, Path], bytes]
ATTACKS: dict[str, Attack] = {}
# guards are dropped and default factories forgotten, so these two load
REASONS = {
    "pickled_example_inputs": "the example inputs are a pickle",
    "a_pickled_weight": "'layer.bias' is stored as a pickle",
    "a_pickled_constant": "'constant' is stored as a pickle",
    "an_opaque_constant": "'evil' is stored as a pickle",
    "legacy_pickled_weights": "data/weights/model.pt is a pickle",
    "legacy_pickled_constants": "data/constants/model.pt is a pickle",
    "code_as_a_symbolic_size": "a symbolic size holds ",
    "code_as_the_text_of_a_size_function": "a symbolic size holds ",
    "code_as_the_name_of_an_argument": "is not the name of a value",
    "code_as_the_name_of_a_parameter": "is not a plain name",
    "code_as_a_constant_argument": "is not a plain name",
    "an_import_as_an_enum_in_a_layout": "the layout of arguments",
    "a_target_that_is_resolved": "the program calls 'torch.evil.x'",
    "an_operator_that_makes_files": "the program calls 'torch.ops.aten.from_file.default'",
}
HARMLESS = ("code_as_a_guard", "an_import_as_a_default_factory")
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def attack(make: Attack) -> Attack:
    ATTACKS[make.__name__] = make
    return make


class Toucher:
    """Unpickling it creates the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def touch(marker: Path) -> str:
    """An expression that creates the file."""
    return f"__import__('pathlib').Path('{marker}').touch()"


def torch_pickle(marker: Path) -> bytes:
    content = io.BytesIO()
    torch.save(((Toucher(marker),), {}), content)
    return content.getvalue()


def json_record(edit: Callable[[Json], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    return apply


def call_of(description: Json) -> Json:
    return description["graph_module"]["module_call_graph"][0]["signature"]


def layout_edit(key: str, edit: Callable[[Json], object]) -> Callable[[Json], None]:
    def apply(description: Json) -> None:
        version, root = json.loads(call_of(description)[key])
        edit(root)
        call_of(description)[key] = json.dumps([version, root])

    return apply


@attack
def pickled_example_inputs(content: bytes, marker: Path) -> bytes:
    return rewritten(content, records={"data/sample_inputs/model.pt": torch_pickle(marker)})


@attack
def a_pickled_weight(content: bytes, marker: Path) -> bytes:
    edit = json_record(lambda c: c["config"]["layer.bias"].update(use_pickle=True))
    return rewritten(
        content, records={WEIGHTS: edit, "data/weights/weight_1": torch_pickle(marker)}
    )


@attack
def a_pickled_constant(content: bytes, marker: Path) -> bytes:
    edit = json_record(lambda c: c["config"]["constant"].update(use_pickle=True))
    records = {CONSTANTS: edit, "data/constants/tensor_0": torch_pickle(marker)}
    return rewritten(content, records=records)


@attack
def an_opaque_constant(content: bytes, marker: Path) -> bytes:
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edit = json_record(lambda c: c["config"].update(evil=meta))
    payload = pickle.dumps(Toucher(marker), protocol=2)
    return rewritten(content, records={CONSTANTS: edit, "data/constants/opaque_obj_0": payload})


@attack
def legacy_pickled_weights(content: bytes, marker: Path) -> bytes:
    return rewritten(content, records={"data/weights/model.pt": torch_pickle(marker)})


@attack
def legacy_pickled_constants(content: bytes, marker: Path) -> bytes:
    return rewritten(content, records={"data/constants/model.pt": torch_pickle(marker)})


@attack
def code_as_a_symbolic_size(content: bytes, marker: Path) -> bytes:
    size = {"as_expr": {"expr_str": touch(marker), "hint": None}}
    return rewritten(
        content, lambda d: d["graph_module"]["graph"]["tensor_values"]["x"].update(sizes=[size])
    )


@attack
def code_as_the_text_of_a_size_function(content: bytes, marker: Path) -> bytes:
    size = {"as_expr": {"expr_str": f'floor("{touch(marker)}")', "hint": None}}
    return rewritten(
        content, lambda d: d["graph_module"]["graph"]["tensor_values"]["x"].update(sizes=[size])
    )


@attack
def code_as_a_guard(content: bytes, marker: Path) -> bytes:
    return rewritten(content, lambda d: d["guards_code"].append(touch(marker) + " is None"))


@attack
def code_as_the_name_of_an_argument(content: bytes, marker: Path) -> bytes:
    name = renamed("mode", f"mode={touch(marker)}")
    return rewritten(content, records={"models/model.json": name})


@attack
def code_as_the_name_of_a_parameter(content: bytes, marker: Path) -> bytes:
    code = f"exec(bytes({list(touch(marker).encode())}))"  # a name has no dots
    name = renamed("layer.weight", f'layer.weight"+str({code})[:0]+"')
    return rewritten(content, records={"models/model.json": name, WEIGHTS: name})


@attack
def code_as_a_constant_argument(content: bytes, marker: Path) -> bytes:
    text = {"as_string": f"it' and {touch(marker)} is None or 'it"}
    return rewritten(content, lambda d: d["graph_module"]["graph"]["inputs"].__setitem__(-1, text))


@attack
def an_import_as_an_enum_in_a_layout(content: bytes, marker: Path) -> bytes:
    (marker.parent / "evil_enum.py").write_text(touch(marker))
    keys = json.dumps([{"__enum__": True, "fqn": "evil_enum:Kind", "name": "A"}, "rest"])
    return rewritten(content, layout_edit("out_spec", lambda root: root.update(context=keys)))


@attack
def an_import_as_a_default_factory(content: bytes, marker: Path) -> bytes:
    (marker.parent / "evil_factory.py").write_text(touch(marker) + "\nmake = list")
    context = {"default_factory_module": "evil_factory", "default_factory_name": "make"}
    root = {"type": "collections.defaultdict", "context": {**context, "dict_context": ["a", "b"]}}
    return rewritten(content, layout_edit("out_spec", lambda old: old.update(root)))


@attack
def a_target_that_is_resolved(content: bytes, marker: Path) -> bytes:
    return rewritten(
        content, records={"models/model.json": renamed("torch.ops.aten.add.Tensor", "torch.evil.x")}
    )


@attack
def an_operator_that_makes_files(content: bytes, marker: Path) -> bytes:
    def argument(name: str, **value: object) -> Json:
        return {"name": name, "arg": value, "kind": 1}

    def edit(description: Json) -> None:
        graph = description["graph_module"]["graph"]
        graph["tensor_values"]["made"] = graph["tensor_values"]["y"]
        inputs = [
            argument("filename", as_string=str(marker)),
            argument("shared", as_bool=True),
            argument("size", as_int=4),
        ]
        node = {"target": "torch.ops.aten.from_file.default", "inputs": inputs, "metadata": {}}
        graph["nodes"].insert(0, {**node, "outputs": [{"as_tensor": {"name": "made"}}]})

    return rewritten(content, edit)


@pytest.fixture(scope="module")
def content() -> bytes:
    return saved(plain())


def run(program: torch.export.ExportedProgram) -> None:
    program.module()(torch.randn(2, 4), y=torch.randn(4), mode="it")


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore")
def test_no_attack_runs_although_it_does_in_torchs_loader(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Resolved:
        def __getattr__(self, _: str) -> object:
            marker.touch()
            return len

    marker = tmp_path / "marker"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "evil", Resolved(), raising=False)
    path = written(tmp_path, ATTACKS[name](content, marker))
    if name in HARMLESS:
        run(load(path).main)
    else:
        with pytest.raises(InputError) as refused:
            load(path)
        assert str(path) in str(refused.value) and REASONS[name] in refused.value.what
    assert not marker.exists()
    try:
        run(torch.export.load(path))
    except Exception:
        pass  # many attacks break the program after they have run
    assert marker.exists(), "this archive is no attack: the test proves nothing"


def test_compiled_libraries_are_refused(content: bytes, tmp_path: Path) -> None:
    bad = rewritten(content, records={"data/aotinductor/model/model.so": b"\x7fELF"})
    with pytest.raises(InputError, match="compiled libraries"):
        load(written(tmp_path, bad))


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.os.mknod",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.save.default",
        "torch.ops.mylib.op.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "torch.ops.higher_order.inline_asm_elementwise",
        "torch.ops.aten.add.Nothing",
        "_operator.methodcaller",
        "_operator.add.__class__",
        "math.prod",
        "#ext:op",
        "os.system",
        "",
    ],
)
def test_targets_outside_the_list_are_refused_by_name(
    target: str, content: bytes, tmp_path: Path
) -> None:
    def edit(description: Json) -> None:
        description["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(InputError) as refused:
        load(written(tmp_path, rewritten(content, edit)))
    assert f"the program calls {target!r}" in str(refused.value)


def test_a_target_as_an_argument_is_checked_too(content: bytes, tmp_path: Path) -> None:
    def edit(description: Json) -> None:
        inputs = description["graph_module"]["graph"]["nodes"][0]["inputs"]
        inputs[-1]["arg"] = {"as_operator": "torch.hub.os.mknod"}

    with pytest.raises(InputError, match=r"torch\.hub\.os\.mknod"):
        load(written(tmp_path, rewritten(content, edit)))


def test_a_target_inside_a_sub_graph_is_checked_too(tmp_path: Path) -> None:
    content = saved(dynamic())
    text = renamed("torch.ops.aten.cumsum.default", "torch.hub.os.mknod")
    with pytest.raises(InputError, match=r"torch\.hub\.os\.mknod"):
        load(written(tmp_path, rewritten(content, records={"models/model.json": text})))


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def step(total: Tensor, row: Tensor) -> list[Tensor]:
            return [total.sinh() + row, total * 1]

        return torch.ops.higher_order.scan(step, [x[0] * 0], [x], ())[0]


def test_a_target_inside_a_loop_is_checked_too(tmp_path: Path) -> None:
    content = saved(torch.export.export(Looping(), (torch.ones(3, 2),), strict=False))
    assert "scan" in str(load(written(tmp_path, content)).main.graph)
    text = renamed("torch.ops.aten.sinh.default", "torch.hub.os.mknod")
    with pytest.raises(InputError, match=r"torch\.hub\.os\.mknod"):
        load(written(tmp_path, rewritten(content, records={"models/model.json": text})))


def test_an_assertion_message_cannot_end_a_literal_of_compiled_code(tmp_path: Path) -> None:
    def edit(description: Json) -> None:
        for node in description["graph_module"]["graph"]["nodes"]:
            for argument in node["inputs"]:
                if argument["name"] == "assert_msg":
                    argument["arg"] = {"as_string": 'x"); system("touch y"); ("\\\n'}

    main = load(written(tmp_path, rewritten(saved(dynamic()), edit))).main
    messages = [n.args[1] for n in main.graph.nodes if "_assert_scalar" in str(n.target)]
    assert messages and not any(set('"\\\n') & set(str(message)) for message in messages)


@pytest.mark.parametrize("place", ["forward_arg_names", "in_spec"])
def test_names_of_arguments_are_identifiers(place: str, content: bytes, tmp_path: Path) -> None:
    names = ["y", "mode=print()"]

    def edit(description: Json) -> None:
        call_of(description)["forward_arg_names"] = ["x", *names]
        if place == "in_spec":
            call_of(description)["forward_arg_names"] = None
            layout_edit(
                "in_spec", lambda root: root["children_spec"][1].update(context=json.dumps(names))
            )(description)

    with pytest.raises(InputError, match="is not the name of a value"):
        load(written(tmp_path, rewritten(content, edit)))


@pytest.mark.parametrize("key", ["it's", 'say "no"', "a\\b", "a\nb", 1.5, None])
def test_keys_of_results_are_plain(key: object, content: bytes, tmp_path: Path) -> None:
    keys = json.dumps([key, "rest"])
    edit = layout_edit("out_spec", lambda root: root.update(context=keys))
    with pytest.raises(InputError, match="is not a plain name"):
        load(written(tmp_path, rewritten(content, edit)))


def test_keys_and_texts_of_example_inputs_are_plain(content: bytes, tmp_path: Path) -> None:
    for inputs in (
        ((torch.ones(2, 4),), {"y": torch.ones(4), "mode=1": "it"}),
        ((torch.ones(2, 4),), {"y": torch.ones(4), "mode": "it' + '"}),
        (({"a'b": torch.ones(2, 4)},), {"y": torch.ones(4), "mode": "it"}),
    ):
        record = io.BytesIO()
        torch.save(inputs, record)
        bad = rewritten(content, records={"data/sample_inputs/model.pt": record.getvalue()})
        with pytest.raises(InputError, match="example inputs"):
            load(written(tmp_path, bad))


def test_the_message_on_pickled_example_inputs_names_what_they_would_import(
    content: bytes, tmp_path: Path
) -> None:
    bad = pickled_example_inputs(content, tmp_path / "marker")
    with pytest.raises(InputError, match=r"pathlib\.Path"):
        load(written(tmp_path, bad))
