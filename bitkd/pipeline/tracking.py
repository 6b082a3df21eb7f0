"""Where a stage's metrics go: CSV files always, wandb where asked."""

import os

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from bitkd.pipeline.plan import Plan
from bitkd.pipeline.planned import PlannedStage


def make_loggers(plan: Plan, stage: PlannedStage) -> list[Logger]:
    """Loggers of one stage. A resumed stage adds a version_N folder, so that nothing logged before is lost."""
    loggers: list[Logger] = [CSVLogger(plan.record.logs, name=stage.name)]
    if plan.config.logger == "wandb":
        import wandb

        settings = plan.config.wandb
        offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False, verify=False)
        loggers.append(
            WandbLogger(
                project=settings.project,
                entity=settings.entity,
                group=f"{plan.config.task.name}-{plan.record.folder.name}",
                job_type=stage.name,
                name=f"{plan.record.folder.name}/{stage.name}",
                save_dir=str(plan.record.logs),
                # Not `offline=True`: Lightning would only set a variable that wandb has read already.
                mode="offline" if offline else "online",
            )
        )
    return loggers


def close_loggers(config_logger: str) -> None:
    """Finish the stage's wandb run, so that the next stage starts one of its own."""
    if config_logger == "wandb":
        import wandb

        wandb.finish()
