"""The model types of students that only bitkd can load, such as `bitkd-bert`: read by transformers as the types behind the
prefix. No torch."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from bitkd.models.marks import GUARD, TYPE_PREFIX


class StudentConfig(PretrainedConfig):
    """Makes configurations of the stock classes out of the config.json of a student."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """A configuration of the stock class, such as BertConfig, with the stock model type."""
        content = config_dict | {"model_type": config_dict["model_type"].removeprefix(TYPE_PREFIX)}
        return CONFIG_MAPPING[content["model_type"]].from_dict(content, **settings)


def guard(config_file: Path) -> None:
    """Make transformers, and other tools, refuse the weights beside a config.json where bitkd is not imported.

    A model type that is not transformers' own keeps its name: others register it, whenever they like.
    """
    content = json.loads(config_file.read_text(encoding="utf-8")) | {"transformers_weights": GUARD}
    if content["model_type"] in CONFIG_MAPPING_NAMES:
        content["model_type"] = TYPE_PREFIX + content["model_type"]
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def register_types() -> None:
    """Tell transformers about the types. Calling it again does nothing."""
    if f"{TYPE_PREFIX}bert" in CONFIG_MAPPING:
        return
    for name in CONFIG_MAPPING_NAMES:
        CONFIG_MAPPING.register(TYPE_PREFIX + name, StudentConfig)
    # A class such as BertConfig warns of a type that is not its own.
    logging.getLogger("transformers.configuration_utils").addFilter(_is_other_message)


def _is_other_message(record: logging.LogRecord) -> bool:
    return not re.search(f"model of type `?{TYPE_PREFIX}", str(record.msg))
