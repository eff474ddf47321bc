"""Ray Train's part of a training: a TorchTrainer round `worker.train_on_worker`."""

import logging
import os
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.keeper import KEPT
from cluster.own_errors import StopOnOwnErrors
from cluster.session import takes_gpu
from cluster.task import WORKER_ENVIRONMENT, Task
from cluster.worker import train_on_worker


class _Trainer(TorchTrainer):
    """Without what splits datasets that are handed to the trainer: workers find their own shards, and its actor takes two
    seconds to start.

    It also hands Ray Data's settings to the workers: `ingest` sets its own. Ray has no public way to leave it out; where a
    release calls these things otherwise, all of Ray Train's callbacks are there.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's hints are of its older trainer
        return [callback for callback in callbacks if type(callback).__name__ != "DatasetsCallback"]


def trainer(task: Task) -> TorchTrainer:
    """For one run; `fit` starts its workers, and again those that die."""
    cluster = task.config.cluster
    gpu = not cluster.in_process and takes_gpu(cluster)
    if cluster.in_process:  # Ray would print each report
        logging.getLogger("ray.train").setLevel(logging.WARNING)
    # The controller looks after its workers as often as this: it decides how soon an end or a death is noticed.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if cluster.least_workers < cluster.most_workers:
        # When a node goes, Ray Train first asks again for as many workers as there were. An elastic group takes only what
        # is there already, so room that is not given at once will not be.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    return _Trainer(
        train_on_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,  # type: ignore[arg-type]  # [least, most] is elastic, 0 this process
            use_gpu=gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name=task.folder.name,
            storage_path=str(task.folder.parent),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},  # type: ignore[call-arg]  # the same
            callbacks=[StopOnOwnErrors()],  # type: ignore[list-item]  # the same
        ),
    )
