"""The model types of students that only bitkd can load, such as `bitkd-bert`: read by transformers as the types behind the
prefix. No torch."""

import logging
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bitkd.models.marks import TYPE_PREFIX


class StudentConfig(PretrainedConfig):
    """Makes configurations of the stock classes out of the config.json of a student."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """A configuration of the stock class, such as BertConfig, with the stock model type."""
        content = config_dict | {"model_type": config_dict["model_type"].removeprefix(TYPE_PREFIX)}
        return CONFIG_MAPPING[content["model_type"]].from_dict(content, **settings)


def register_types() -> None:
    """Tell transformers about the types. Calling it again does nothing."""
    if f"{TYPE_PREFIX}bert" in CONFIG_MAPPING:
        return
    for name in CONFIG_MAPPING.keys():  # noqa: SIM118
        CONFIG_MAPPING.register(TYPE_PREFIX + name, StudentConfig)
    # A class such as BertConfig warns of a type that is not its own.
    logging.getLogger("transformers.configuration_utils").addFilter(lambda record: TYPE_PREFIX not in str(record.msg))
