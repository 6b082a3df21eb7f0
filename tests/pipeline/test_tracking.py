import csv

from bitkd.config.load import load_config
from bitkd.pipeline.runner import run


def test_wandb_writes_offline_without_a_key(settings, console, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(load_config(settings(tmp_path, "singlestage", "logger=wandb", "trainer.log_every_n_steps=1")), console)
    logs = tmp_path / "rte" / "singlestage" / "logs"
    offline = list((logs / "wandb").glob("offline-run-*"))
    assert len(offline) == 4  # one for each stage
    assert all(list(folder.glob("*.wandb")) for folder in offline)


def test_the_csv_log_holds_terms_rate_and_throughput(settings, console, tmp_path):
    run(load_config(settings(tmp_path, "singlestage", "trainer.log_every_n_steps=1")), console)
    with open(tmp_path / "rte" / "singlestage" / "logs" / "single" / "version_0" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = {
        "step",
        "train/loss",
        "train/logits",
        "train/hidden",
        "train/attention",
        "dev/score",
        "dev/accuracy",
        "lr-AdamW/pg1",
    }
    assert columns <= set(rows[0])
    assert all(float(row["train/examples_per_second"]) > 0 for row in rows if row["train/loss"])
    assert len([row for row in rows if row["train/loss"]]) == 4
    assert len([row for row in rows if row["dev/score"]]) == 2
