"""wandb's sweep files on machines of one's own, without a server."""
