"""A progress bar that shows which stage of the graph is running."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override


class StageProgressBar(RichProgressBar):
    """Lightning's rich bar with `position`, such as "stage 2 of 8: Stage-I KD", in place of the epoch."""

    def __init__(self, position: str) -> None:
        super().__init__(leave=False)
        self.position = position

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return self.position

    @override
    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
