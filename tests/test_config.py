"""Every bad value is refused with a message that names the field, the value and what is allowed."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from assay.config import BUNDLED_MODEL, EngineConfig, ServerConfig
from assay.errors import ConfigError

Config = EngineConfig | ServerConfig

BAD_CHOICES = [
    (EngineConfig, "dtype", "int4", ("auto", "float32", "bfloat16", "float16")),
    (EngineConfig, "device", "tpu", ("auto", "cpu", "cuda")),
    (EngineConfig, "device", "CPU", ("auto", "cpu", "cuda")),
    (EngineConfig, "activation", "relu", ("auto", "none", "softmax", "sigmoid")),
    (EngineConfig, "activation", "", ("auto", "none", "softmax", "sigmoid")),
    (EngineConfig, "activation", None, ("auto", "none", "softmax", "sigmoid")),
    (ServerConfig, "log_level", "verbose", ("debug", "info", "warning", "error")),
]
BAD_NUMBERS = [
    (EngineConfig, "max_model_len", 0, ("1",)),
    (EngineConfig, "max_model_len", -5, ("1",)),
    (EngineConfig, "max_batch_tokens", 0, ("1",)),
    (EngineConfig, "max_queue_tokens", -1, ("1",)),
    (EngineConfig, "max_cache_bytes", -1, ("0",)),
    (EngineConfig, "tokenizer_threads", 0, ("1",)),
    (ServerConfig, "port", -1, ("0", "65535")),
    (ServerConfig, "port", 65536, ("0", "65535")),
    (ServerConfig, "max_body_bytes", 0, ("1",)),
    (ServerConfig, "max_request_inputs", 0, ("1",)),
    (ServerConfig, "drain_timeout", -0.5, ("0",)),
    (ServerConfig, "drain_timeout", math.nan, ("0",)),
]
WRONG_TYPES = [
    (EngineConfig, "max_batch_tokens", "many", ()),
    (EngineConfig, "max_batch_tokens", None, ()),
    (EngineConfig, "max_model_len", "512", ()),
    (ServerConfig, "port", "8000", ()),
]


@pytest.mark.parametrize(("kind", "field", "value", "allowed"), BAD_CHOICES + BAD_NUMBERS + WRONG_TYPES)
def test_bad_value_is_refused_by_name(kind: type[Config], field: str, value: Any, allowed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refusal:
        kind(**{field: value})
    message = refusal.value.message
    assert field in message
    assert str(value) in message
    for word in allowed:
        assert word in message.replace(str(value), "", 1)


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model is empty; give a folder or a hub id"):
        EngineConfig(model="")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (EngineConfig, {"max_model_len": 1, "max_batch_tokens": 1, "max_queue_tokens": 1, "tokenizer_threads": 1}),
        (EngineConfig, {"max_model_len": None}),
        (ServerConfig, {"port": 0, "max_body_bytes": 1, "max_request_inputs": 1, "drain_timeout": 0}),
        (ServerConfig, {"port": 65535}),
    ],
)
def test_the_edges_of_what_is_allowed(kind: type[Config], values: dict[str, Any]) -> None:
    config = kind(**values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(("kind", "field", "value", "allowed"), BAD_CHOICES)
def test_every_choice_that_the_message_offers_is_taken(
    kind: type[Config], field: str, value: Any, allowed: tuple[str, ...]
) -> None:
    for choice in allowed:
        assert getattr(kind(**{field: choice}), field) == choice


@pytest.mark.parametrize("config", [EngineConfig(), ServerConfig()])
def test_frozen(config: Config) -> None:
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))
    assert config == type(config)()


def test_served_name() -> None:
    assert EngineConfig().served_name == "assay/emotions"
    assert EngineConfig(model=str(BUNDLED_MODEL)).served_name == "assay/emotions"
    assert EngineConfig(model="unitary/toxic-bert").served_name == "unitary/toxic-bert"
    assert EngineConfig(model="unitary/toxic-bert", name="toxic").served_name == "toxic"


def test_the_bundled_model_lies_inside_the_package() -> None:
    assert BUNDLED_MODEL.is_absolute()
    assert BUNDLED_MODEL.is_relative_to(Path(__file__).parents[1] / "assay")
