"""A model without weights: from its shape, or from a configuration file of transformers."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from orthon.train.errors import UserError
from orthon.train.model.build import llama_config
from orthon.train.settings.cluster import ClusterConfig
from orthon.train.settings.data import MOST_TOKENS
from orthon.train.settings.shortened import shortened

FILE = "config.json"
LARGEST = 2**24  # bytes of it
MOST = 10_000  # layers, or experts of one

# What the file may say that has no part in training: code of its own, and how weights were compressed.
LEFT_OUT = ("auto_map", "quantization_config")


def model_on_meta(config: ClusterConfig) -> PreTrainedModel:
    """Return the model that the settings name, on the device meta.

    Raises:
        UserError: the file is no configuration of a model that transformers has for text.
    """
    described = llama_config(config.model.shape, config.vocabulary)
    name = f"model.size {config.model.size}"
    if config.config_json is not None:
        described, name = _read(config.config_json), str(config.config_json)
    dtype = getattr(torch, config.precision)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=()):
            return AutoModelForCausalLM.from_config(
                described, dtype=dtype, attn_implementation="eager", trust_remote_code=False
            )
    except Exception as error:  # transformers' models check their own settings, each in its way
        raise UserError(f"{name} makes no language model: {_first_line(error)}") from error


def weights_of_a_token(model: PreTrainedModel) -> int:
    """Return how many weights work on one token: all of them, but of experts those that a token is sent to."""
    config = model.config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    total = 0
    for name, param in model.named_parameters():
        of_experts = bool(experts and chosen) and ".experts." in name
        total += param.numel() * chosen // experts if of_experts else param.numel()
    return total


def _read(path: Path) -> PretrainedConfig:
    file = path / FILE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            raw = opened.read(LARGEST + 1)
        content: Any = json.loads(raw.decode()) if len(raw) <= LARGEST else None
    except OSError as error:
        raise UserError(f"config_json must be a {FILE} or its folder, but {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if len(raw) > LARGEST:
        raise UserError(f"{file} has more than {LARGEST:,} bytes, which is too much for a {FILE}")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise UserError(f"{file} is no configuration of transformers: it has no model_type")
    if kind not in CONFIG_MAPPING:
        reason = (
            "its own code is never run" if "auto_map" in content else "this version of transformers does not have it"
        )
        raise UserError(f"{file} is of model_type {kind!r}: {reason}; write --model.size with sizes near those of it")
    _refuse_giants(content, file)
    plain = {key: value for key, value in content.items() if key not in LEFT_OUT}
    try:
        return CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # likewise
        raise UserError(f"{file}: {_first_line(error)}") from error


def _refuse_giants(content: Any, file: Path) -> None:
    """Refuse numbers of layers, experts or tokens that no model has: each takes its time even without weights."""
    for key, value in content.items():
        if isinstance(value, dict):
            _refuse_giants(value, file)
        elif isinstance(value, int):
            counted = re.search("layer|expert|depth|block", key)
            most = MOST if counted else MOST_TOKENS if "vocab" in key else math.inf
            if value > most:
                raise UserError(f"{file}: {shortened(key)[1:-1]} must be at most {most:,} but is {shortened(value)}")


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
