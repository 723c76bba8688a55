"""A network's config survives a checkpoint, and foreign ones are refused."""

from __future__ import annotations

import pytest

from tamiyo_stream.model.config import TamiyoGNNConfig


def test_config_round_trips() -> None:
    config = TamiyoGNNConfig(dropout=0.0)
    assert TamiyoGNNConfig.from_dict(config.to_dict()) == config


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="architecture_version is 'ffn_v0'"):
        TamiyoGNNConfig.from_dict({"architecture_version": "ffn_v0"})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown fields \\['depth'\\]"):
        TamiyoGNNConfig.from_dict({"depth": 4})
