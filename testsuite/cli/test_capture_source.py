import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError

from tokopt.cli import capture_source
from tokopt.cli.capture_families import FAMILIES, family_of
from tokopt.ir.errors import InputError, UnsupportedError

CONFIG = transformers.ViTConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=16,
    image_size=16,
    patch_size=8,
)
CLASS = "AutoModelForImageClassification"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.ViTForImageClassification(CONFIG).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def load(folder: Path) -> object:
    return capture_source.load(folder, CLASS, torch.float32)


def test_a_saved_model_loads_without_gradients(folder: Path) -> None:
    model = capture_source.load(folder, CLASS, torch.float16)
    assert model.dtype == torch.float16 and not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", CLASS: "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    load(folder)
    assert not marker.exists()


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(torch.load, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickled weights are refused"):
        load(folder)


def test_damaged_weights_are_an_input_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load(folder)
    assert caught.value.__cause__ is not None


def test_weights_missing_from_the_files_are_refused(folder: Path) -> None:
    transformers.ViTModel(CONFIG, add_pooling_layer=False).save_pretrained(folder)
    with pytest.raises(InputError, match=r"(?s)would be random.*classifier"):
        load(folder)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"model_type": 3}', "\udcff"])
def test_a_folder_without_a_usable_config_is_an_input_error(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json"):
        capture_source.read_config(tmp_path)


def test_an_unknown_model_type_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedError) as caught:
        family_of({"model_type": "beit"}, "folder")
    assert all(kind in str(caught.value) for kind in FAMILIES) and caught.value.exit_code == 3


def test_an_architecture_without_a_usable_output_is_unsupported() -> None:
    config = {"model_type": "vit", "architectures": ["ViTForMaskedImageModeling"]}
    with pytest.raises(UnsupportedError, match="ViTForMaskedImageModeling"):
        family_of(config, "folder").auto_class(config)


def test_a_hub_id_that_cannot_be_reached_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="nobody/nothing: no connection"):
        capture_source.resolve("nobody/nothing")


def test_a_hub_id_downloads_only_json_and_safetensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def download(source: str, **options: object) -> str:
        asked.update(options, source=source)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert capture_source.resolve("owner/name") == folder
    assert asked["source"] == "owner/name"
    assert asked["allow_patterns"] == ["*.json", "*.safetensors"]


def test_both_file_names_of_processor_settings_are_read(tmp_path: Path) -> None:
    assert capture_source.read_image_processor(tmp_path) == {}
    (tmp_path / "preprocessor_config.json").write_text('{"size": 1}')
    assert capture_source.read_image_processor(tmp_path) == {"size": 1}
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": 2}}')
    assert capture_source.read_image_processor(tmp_path) == {"size": 2}
    shutil.rmtree(tmp_path)
