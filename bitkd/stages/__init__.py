"""One LightningModule per kind of stage, and the table of kinds."""
