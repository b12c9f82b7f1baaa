"""Fine-tuning in several processes: started as a child, spread by accelerate, gathered where a whole is needed."""

import os
import subprocess
import sys
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

import beit3lib
from beit3lib.config import TrainConfig, as_flag
from beit3lib.files import read_json
from beit3lib.pipeline.settings import OptionError

RESULTS_NAME = "results.json"


def launch(config: TrainConfig, num_gpus: int) -> dict[str, Any]:
    """Fine-tune on several GPUs as a child process, `accelerate launch … -m beit3lib.train`; never by forking.

    A child that fails is a RuntimeError with its last lines. Returns the results it left in results.json.
    """
    flags = [part for name, value in asdict(config).items() for part in as_flag(name, value)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_gpus), "--main_process_port", "0"]
    command += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    here = str(Path(beit3lib.__file__).parents[1])  # a notebook may have found the package where no installation tells of it
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    child = subprocess.Popen(
        [*command, "-m", "beit3lib.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    last: deque[str] = deque(maxlen=20)
    of_children = True  # once one has failed, the launcher has fifty lines of its own to say
    for line in child.stdout:
        print(line, end="", flush=True)
        of_children &= "torch/distributed/elastic" not in line
        if of_children:
            last.append(line)
    if child.wait():
        raise RuntimeError(f"training on {num_gpus} processes failed with exit status {child.returncode}:\n{''.join(last)}")
    return read_json(Path(config.output_dir) / RESULTS_NAME)


def refuse_strategies(accelerator) -> None:
    """accelerate's ways to spread a model that this training loop does not know: it would fail after an epoch."""
    kind = accelerator.distributed_type
    old_fsdp = kind == DistributedType.FSDP and not accelerator.is_fsdp2
    if old_fsdp or kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise OptionError(f"accelerate is set to {kind.value}; expected none, several GPUs, or FSDP with fsdp_version: 2")


def gathered(tree: Any) -> Any:
    """What FSDP has spread over processes, whole, and on the CPU; everything else as it is. All processes must ask."""
    return tree_map_only(DTensor, lambda value: value.full_tensor().cpu(), tree)


def spread(values: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `gathered`: this process's share of each value whose counterpart in `like` FSDP has spread."""

    def share(value: Tensor, other: Tensor) -> Tensor:
        if not isinstance(other, DTensor) or value.shape != other.shape:
            return value
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)

    return {name: share(value, like[name]) for name, value in values.items()}
