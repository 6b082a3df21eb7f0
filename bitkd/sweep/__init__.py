"""wandb's sweep files on machines of one's own, without a server."""

import warnings

# Of the `sweeps` package, which was written for pydantic 1: it says so at every import.
warnings.filterwarnings("ignore", message="Valid config keys have changed in V2")
