"""Run a module of this package in several processes of this machine, and react to SIGTERM and SIGINT."""

import os
import re
import signal
import subprocess
import sys
import threading
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import beit3lib

TAIL_LINES = 20  # of the output, in the error about a failed process
# The launcher ends with this traceback when a signal stops it as it should.
STOPPED_LAUNCHER = re.compile(
    r"Traceback \(most recent call last\):\n(?: .*\n)+torch\S*SignalException: .*\n"
)


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` on SIGTERM and SIGINT instead of ending the process, while the block runs."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # Python allows handlers in the main thread only
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: handle(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def ignore_signals(_: int) -> None:
    """Let a loader worker outlive Ctrl-C, which reaches the whole process group: its process decides when to stop.

    A step still needs the images of its workers, and a worker that ends by itself is reported as an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def run_processes(module: str, arguments: Sequence[str], num_processes: int, device: str) -> None:
    """Run `python -m module arguments` in `num_processes` processes with torch's launcher, and print their output here.

    SIGTERM and SIGINT are passed on; when the processes have ended, this one exits with the status of the signal. Raises
    `RuntimeError` with the last lines of the output if a process failed.
    """
    if device != "cpu" and torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise ValueError(
            f"num_gpus: expected at most {torch.cuda.device_count()}, the GPUs of this machine, got {num_processes}"
        )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(num_processes),
    ]
    # A notebook may have found the package in a folder that is not installed.
    folders = [str(Path(beit3lib.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    child = subprocess.Popen(
        [*command, "--module", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        start_new_session=True,  # so that Ctrl-C reaches the child only once, through `pass_on`
    )
    received, output, rest, decoder = [], "", "", getincrementaldecoder("utf-8")("replace")

    def pass_on(number: int) -> None:
        if not received:  # at a second signal the launcher would kill processes that are saving
            child.send_signal(number)
        received.append(number)

    with on_signals(pass_on):
        try:
            # Not line by line: a progress bar returns to the start of its line and does not end it.
            while chunk := child.stdout.read1(65536):
                text = decoder.decode(chunk)
                output = (output + text)[-100_000:]
                if received:
                    rest += text
                else:
                    print(text, end="", flush=True)
            child.wait()
        except BaseException:
            child.terminate()
            raise
    if received:
        print(STOPPED_LAUNCHER.sub("", rest), end="", flush=True)
        sys.exit(128 + received[0])
    if child.returncode:
        # The launcher prints its own traceback after that of the failed process. Cut the output there, so that the message
        # ends with the real error.
        lines = output.partition("torch/distributed/elastic")[0].splitlines()[:-1]
        tail = "\n".join(lines[-TAIL_LINES:])
        raise RuntimeError(
            f"{module} in {num_processes} processes failed with exit status {child.returncode}:\n{tail}"
        )
