"""wandb's sweep files on your own machines, without a server."""
