"""Runs in processes of their own that need not import the libraries: a server that has imported them forks each one."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from multiprocessing import forkserver
from unittest.mock import patch

import torch

from bitkd.cli import main

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"}

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bitkd.pipeline.runner", "bitkd.tracking"])

LONGEST_SECONDS = 240
"""A process that has not ended by then is killed."""


class Children:
    """One command of bitkd in `ranks` processes, which are told what torchrun tells its own, and print into one pipe.

    prepare: a function of a test module that each process calls first.
    """

    def __init__(self, arguments, ranks=1, prepare=None):
        with patch.dict(os.environ, ENVIRONMENT):
            forkserver.ensure_running()
        port = free_port()
        places = [place_of(rank, ranks, port) for rank in range(ranks)] if ranks > 1 else [{}]
        reader, writer = CONTEXT.Pipe(duplex=False)
        self.processes = [CONTEXT.Process(target=_work, args=(writer, place, arguments, prepare)) for place in places]
        for process in self.processes:
            process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        self._limit = threading.Timer(LONGEST_SECONDS, self.send_signal, [signal.SIGKILL])
        self._limit.start()

    def send_signal(self, number):
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def finish(self, code=0):
        """The rest of the output, once all processes have ended with this exit code."""
        with self.stdout:
            output = self.stdout.read()
        assert self.wait() == {code}, output
        return output

    def wait(self):
        """The exit codes, once all processes have ended."""
        for process in self.processes:
            process.join()
        self._limit.cancel()
        return {process.exitcode for process in self.processes}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def place_of(rank, ranks, port):
    """The variables that torchrun sets."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    names |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
    return {name: str(value) for name, value in names.items()}


def _work(output, place, arguments, prepare):
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
    os.environ.update(place)
    torch.set_num_threads(1)
    sys.argv = ["bitkd", *arguments]
    if prepare:
        prepare()
    sys.exit(main(arguments))
