from bitkd.config.comparable import result_settings, with_newer
from bitkd.config.load import load_config


def test_settings_of_a_run_from_before_they_came_are_those_of_today() -> None:
    today = result_settings(load_config(["pipeline=multistage", "task=demo"]))
    newer = ("quant.forward_clip", "quant.column_scales", "quant.learned_scales", "quant.levels", "loss.intervention",
             "loss.intervention_share")  # fmt: skip
    before = {name: value for name, value in today.items() if not name.endswith(newer)}
    assert len(before) == len(today) - len(newer) * sum(name.endswith(".quant.levels") for name in today)
    assert with_newer(before) == today
    other = result_settings(load_config(["pipeline=multistage", "task=demo", "stages.ternary.loss.intervention=map"]))
    assert with_newer(other) == other != today
