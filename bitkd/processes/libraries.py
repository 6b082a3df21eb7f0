"""How the libraries behave in a process that bitkd runs: environment variables, and what they print."""

import logging
import os
import sys
import warnings


def set_environment() -> None:
    """Set what the libraries read when they are imported, unless it is set already."""
    # Waiting threads sleep instead of spinning: if another process needs a core, small models run ten times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def quieten(show_notes: bool = True) -> None:
    """Hide the libraries' routine messages, but not errors.  show_notes: print the log messages of bitkd itself.

    Call it after lightning is imported, which sets its own levels. Progress bars: see `set_environment`.
    """
    # Such as counts of truncated or empty rows.
    own = logging.getLogger("bitkd")
    if show_notes and not own.handlers:
        handler = _Notes()
        handler.setFormatter(logging.Formatter("note: %(message)s"))
        own.addHandler(handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _REMARKS:
        warnings.filterwarnings("ignore", message=message)


class _Notes(logging.Handler):
    """Prints to the standard error of the moment: a progress line replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_REMARKS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*dataloader is not resumable.*",  # bitkd's is: ResumeCheckpoint restores the position in the data
    ".*recommended to use `self.log.*sync_dist.*",  # torchmetrics has synchronized the value already
    ".*broadcast_buffers.*deprecated.*",
    ".*LeafSpec.*deprecated.*",
    ".*Trying to infer the `batch_size`.*",
    r"\s*Online softmax is disabled",  # how PyTorch's compiler made a kernel on a GPU
)
