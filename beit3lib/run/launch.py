"""Run a module of this package in several processes of this machine, and react to signals."""

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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal was closed
WORKER_GRACE_S = 10
# The launcher ends with this traceback when a signal stops it as it should.
STOPPED_LAUNCHER = re.compile(r"Traceback .*:\n(?: .*\n)+torch\S*SignalException: .*\n")


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` on SIGTERM, SIGINT and SIGHUP in the block, instead of ending the process."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return
    before = [signal.signal(number, lambda number, _: handle(number)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def outlive_signals(_: int) -> None:
    """Let a loader worker outlive a signal to the whole process group: its process decides when to stop.

    A step still needs the images of its workers, and a worker that ends by itself is reported as an error.
    But Python ends the workers of a failed process by SIGTERM and waits for them, so that one ends a worker
    after a while.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))


def run_processes(module: str, arguments: Sequence[str], num_processes: int, device: str) -> None:
    """Run `python -m module arguments` in `num_processes` processes, and print their output here.

    Signals are passed on; when the processes have ended, this one exits with the status of the signal. Raises
    `RuntimeError` with the last lines of the output if a process failed.
    """
    gpus = torch.cuda.device_count()
    if device != "cpu" and gpus and num_processes > gpus:
        raise ValueError(f"num_gpus: expected at most {gpus}, the GPUs of this machine, got {num_processes}")
    if device == "cpu" or not gpus:
        print(f"num_gpus: no GPU is used, so {num_processes} processes share the CPU", flush=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={num_processes}",
    ]
    command += ["--local-addr=127.0.0.1"]  # in many containers the name of the host does not resolve
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
        # The launcher's own traceback comes last; the message ends with that of the failed process.
        lines = output.partition("torch/distributed/elastic")[0].splitlines()[:-1]
        what = f"{module} in {num_processes} processes failed, status {child.returncode}"
        raise RuntimeError("\n".join([f"{what}:", *lines[-20:]]))
