"""What a folder says of its model that embeds is read, and what is not done is refused by name, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ferrum.errors import FerrumError
from ferrum.graphs.model_files import open_files
from ferrum.graphs.models.embedding import Embedding, embedding_of
from ferrum.graphs.models.registry import find_config
from ferrum.graphs.models.traced_config import TracedConfig

MODULES: list[Any] = [
    {"idx": i, "name": str(i), "path": f"{i}_{part}" if i else "", "type": f"sentence_transformers.models.{part}"}
    for i, part in enumerate(("Transformer", "Pooling", "Normalize"))
]
MEAN = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512, "hidden_size": 8}


def folder(at: Path, **files: Any) -> Path:
    """``files`` by name, dots and slashes as underscores: "" leaves one out."""
    whole: dict[str, Any] = {
        "config.json": BERT,
        "modules.json": MODULES,
        "1_Pooling/config.json": MEAN,
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None},
    }
    for name, value in whole.items():
        given = files.get(name.replace(".", "_").replace("/", "_"), value)
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if given != "":
            path.write_text(given if isinstance(given, str) else json.dumps(given), encoding="utf-8")
    return at


def read(at: Path, pooling: str = "") -> Embedding | None:
    return embedding_of(open_files(at), pooling)


def test_everything_is_read(tmp_path: Path) -> None:
    found = read(folder(tmp_path))
    assert found == Embedding("mean", True, 128, {"query": "query: ", "document": ""}, "")
    config = find_config(tmp_path)
    assert isinstance(config, TracedConfig) and config.architecture == "BertModel" and config.embedding == found
    assert (config.max_model_len, config.longest) == (128, 512)


@pytest.mark.parametrize(
    ("pooling", "how"),
    [
        ({"pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "first"),
    ],
)
def test_poolings(pooling: dict[str, Any], how: str, tmp_path: Path) -> None:
    found = read(folder(tmp_path, modules_json=MODULES[:2], **{"1_Pooling_config_json": pooling}))
    assert found is not None and (found.pooling, found.normalize) == (how, False)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"1_Pooling_config_json": MEAN | {"pooling_mode_cls_token": True}}, "config-unsupported", "cls_token"),
    ({"1_Pooling_config_json": {"pooling_mode_mean_tokens": False}}, "config-unsupported", "of none"),
    ({"1_Pooling_config_json": {"pooling_mode": "attention"}}, "config-unsupported", "attention"),
    ({"1_Pooling_config_json": MEAN | {"include_prompt": False}}, "config-unsupported", "include_prompt"),
    ({"1_Pooling_config_json": ""}, "config-unreadable", "no such file"),
    ({"modules_json": [*MODULES[:2], MODULES[2] | {"type": "x.Dense"}]}, "config-unsupported", "Dense"),
    ({"modules_json": [MODULES[0] | {"path": "0_Transformer"}, *MODULES[1:]]}, "config-unsupported", "0_Transformer"),
    ({"modules_json": [MODULES[0], MODULES[1] | {"path": "../up"}]}, "config-unsupported", "without a type"),
    ({"modules_json": [3]}, "config-unsupported", "without a type"),
    ({"modules_json": "{"}, "config-unreadable", "not what it should be"),
    ({"sentence_bert_config_json": {"max_seq_length": -1}}, "config-unsupported", "max_seq_length = -1"),
    ({"sentence_bert_config_json": {"do_lower_case": True}}, "config-unsupported", "do_lower_case"),
    ({"config_sentence_transformers_json": {"prompts": {"q": 1}}}, "config-unsupported", "prompts"),
    ({"config_sentence_transformers_json": {"default_prompt_name": "q"}}, "config-unsupported", "'q'"),
    ({"config_json": BERT | {"model_type": "nobodys"}}, "model-unsupported", "nobodys"),
]


@pytest.mark.parametrize(("files", "code", "told"), REFUSED)
def test_what_is_not_done_is_refused_by_name(files: dict[str, Any], code: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(FerrumError) as error:
        find_config(folder(tmp_path, **files))
    assert error.value.code == code and told in error.value.what and "\n" not in str(error.value)


@pytest.mark.parametrize("named", ["BertModel", "BertForMaskedLM"])
def test_pooling_is_never_guessed(named: str, tmp_path: Path) -> None:
    """An encoder whose folder does not say how its rows become one is refused; told how, it embeds."""
    folder(tmp_path, modules_json="", config_json=BERT | {"architectures": [named]})
    with pytest.raises(FerrumError, match="no modules.json says how they become one embedding") as error:
        find_config(tmp_path)
    assert "--pooling mean" in error.value.next_step
    config = find_config(tmp_path, "cls")
    assert isinstance(config, TracedConfig) and config.embedding == Embedding("first") and config.max_model_len == 512


def test_a_folder_that_says_it_is_not_told_otherwise(tmp_path: Path) -> None:
    with pytest.raises(FerrumError, match="says how it pools"):
        find_config(folder(tmp_path), "cls")


def test_positions_behind_the_padding_are_fewer(tmp_path: Path) -> None:
    roberta = {"model_type": "roberta", "architectures": ["RobertaModel"], "max_position_embeddings": 514, "pad_token_id": 1}
    config = find_config(folder(tmp_path, config_json=BERT | roberta, sentence_bert_config_json=""))
    assert isinstance(config, TracedConfig) and config.longest == config.max_model_len == 512
