"""One LightningModule per KD stage."""
