import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from testsuite.zoo import gemma3, llava, qwen2_5_vl
from testsuite.zoo.weights import randomise

from tokopt.cli import capture, export
from tokopt.cli.capture_logits import PromptLogits
from tokopt.ir.errors import GateError, InputError, UnsupportedError
from tokopt.ir.load import load

pytestmark = pytest.mark.slow

VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    classifier = transformers.ViTForImageClassification(
        transformers.ViTConfig(**VIT, intermediate_size=64, num_labels=5)
    )
    for name, model in {
        "llava": llava.model(attention="sdpa", seed=0, layers=2),
        "qwen": qwen2_5_vl.model(attention="sdpa", seed=0, vision_layers=2, layers=2),
        "vit": randomise(classifier, 0),
        "gemma3": gemma3.model("sdpa", 0),
        "dinov2": randomise(transformers.Dinov2Model(transformers.Dinov2Config(**VIT)), 0),
    }.items():
        model.save_pretrained(folder / name)
    return folder


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    export.add_parser(parser.add_subparsers())
    args = parser.parse_args(["export", *map(str, words)])
    code = args.run(args)
    assert isinstance(code, int)
    return code


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_dynamic_llava_runs_from_the_file_at_other_sizes_as_the_model_does(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.pt2"
    assert run(models / "llava", "-o", output, "--dynamic", "batch,length", "--json") == 0
    said = report(capsys)
    assert said["visual_tokens"] == llava.VISUAL and said["difference"] <= 1e-4
    assert said["bytes"] == output.stat().st_size
    assert said["inputs"] == {"pixel_values": [2, 3, 48, 48], "input_ids": [2, 100]}
    loaded = torch.export.load(output)
    example, inputs = loaded.example_inputs[0], llava.inputs(3, 50, seed=5)
    assert [tuple(t.shape) for t in example] == [(2, 3, 48, 48), (2, 100)]
    model = llava.model(attention="eager", seed=0, layers=2)
    for given in (inputs, tuple(example)):
        want = model(pixel_values=given[0], input_ids=given[1]).logits
        torch.testing.assert_close(loaded.module()(*given), want, atol=1e-4, rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["out.pt2"]


def test_qwen_is_exported_for_the_asked_image_with_positions_as_an_input(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--image-size", "64x96", "--dynamic", "length", "--prompt-length", 40)
    assert run(models / "qwen", "-o", tmp_path / "q.pt2", *options, "--json") == 0
    said = report(capsys)
    assert said["visual_tokens"] == 24 and said["difference"] <= 1e-4
    assert said["inputs"] == {
        "pixel_values": [96, 384],
        "input_ids": [1, 40],
        "position_ids": [3, 1, 40],
    }


def test_padded_prompts_of_several_images_are_loaded_again_and_checked_on_every_side(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--images", 2, "--padding", "--dynamic", "length", "--prompt-length", 29)
    assert run(models / "gemma3", "-o", tmp_path / "g.pt2", *options, "--json") == 0
    said = report(capsys)
    assert said["visual_tokens"] == 18 and said["difference"] <= 1e-4
    assert said["inputs"] == {
        "pixel_values": [2, 3, 48, 48],
        "input_ids": [1, 29],
        "attention_mask": [1, 29],
    }
    assert load(tmp_path / "g.pt2").main.graph_signature.user_inputs == tuple(said["inputs"])


def test_a_vit_in_half_precision_is_compared_in_float32_first(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(models / "vit", "-o", tmp_path / "v.pt2", "--dtype", "bfloat16") == 0
    said = capsys.readouterr()
    assert "in float32" in said.err and "in bfloat16" in said.err
    assert "16 visual tokens" in said.out and said.out.count("\n") == 1
    program = torch.export.load(tmp_path / "v.pt2")
    assert {p.dtype for p in program.parameters()} == {torch.bfloat16}


def test_the_image_size_is_the_users_else_the_processors_else_the_models(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "d.pt2"

    def pixels(*options: str) -> object:
        run(models / "dinov2", "-o", output, "--json", *options)
        inputs = report(capsys)["inputs"]
        assert isinstance(inputs, dict)
        return inputs["pixel_values"]

    assert pixels() == [1, 3, 32, 32]
    settings = {"do_center_crop": True, "crop_size": {"height": 24, "width": 40}}
    processor = models / "dinov2" / "preprocessor_config.json"
    processor.write_text(json.dumps(settings))
    try:
        assert pixels() == [1, 3, 24, 40]
        assert pixels("--image-size", "16x32", "--dynamic", "batch") == [2, 3, 16, 32]
    finally:
        processor.unlink()


def test_a_capture_that_is_not_the_model_is_refused_and_nothing_is_written(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PromptLogits.call

    def images_of_other_items(self: PromptLogits, given: dict[str, torch.Tensor]) -> torch.Tensor:
        return plain(self, {**given, "pixel_values": given["pixel_values"].flip(0)})

    monkeypatch.setattr(PromptLogits, "call", images_of_other_items)
    with pytest.raises(GateError, match="differs from the model"):
        run(models / "llava", "-o", tmp_path / "x.pt2", "--dynamic", "batch")
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_the_largest_difference_that_passes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "largest_difference", lambda got, want: 1e-5)
    output = tmp_path / "x.pt2"
    with pytest.raises(GateError, match=r"1\.0e-05"):
        run(models / "vit", "-o", output, "--tolerance", "0.99e-5")
    assert not output.exists()
    assert run(models / "vit", "-o", output, "--tolerance", "1e-5") == 0


def test_an_existing_file_survives_a_failed_export(models: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pt2"
    output.write_bytes(b"old")
    with pytest.raises(InputError):
        run(models / "vit", "-o", output, "--image-size", "33x32")
    assert output.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("llava", ["--image-size", "56x56"], "48x48"),
        ("llava", ["--prompt-length", "37"], "38 "),
        ("llava", ["--prompt-length", "74", "--images", "2"], "75 "),
        ("llava", ["--frames", "2"], "reads no video"),
        ("vit", ["--padding"], "reads no prompt"),
        ("vit", ["--prompt-length", "37"], "reads no prompt"),
        ("dinov2", ["--dynamic", "length"], "reads no prompt"),
        ("qwen", ["--image-size", "60x60"], "multiples of 16"),
        ("absent", [], "no such model folder"),
        ("llava/config.json", [], "no such model folder"),
    ],
)
def test_a_request_the_model_cannot_meet_is_an_input_error(
    models: Path, tmp_path: Path, model: str, options: list[str], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(models / model, "-o", tmp_path / "x.pt2", *options)
    assert message in str(caught.value)


def test_a_free_batch_of_packed_patches_is_unsupported(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="packed"):
        run(models / "qwen", "-o", tmp_path / "x.pt2", "--dynamic", "batch")


@pytest.mark.parametrize("output", ["x.onnx", "absent/x.pt2", "."])
def test_an_output_that_cannot_be_written_is_refused_at_once(
    models: Path, tmp_path: Path, output: str
) -> None:
    with pytest.raises(InputError):
        run(models / "vit", "-o", tmp_path / output)


@pytest.mark.parametrize(
    "words", ["--dynamic depth", "--image-size 0x4", "--dtype x", "--images 0", "--frames x"]
)
def test_a_malformed_option_exits_with_2(tmp_path: Path, words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run("m", "-o", tmp_path / "x.pt2", *words.split())
    assert caught.value.code == 2


def test_without_transformers_the_message_says_what_to_install(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'tokopt\[export\]'"):
        run(models / "vit", "-o", tmp_path / "x.pt2")
