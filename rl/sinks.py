"""Where a run's numbers go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Each needs its package only when it is asked for. A resumed run goes on in the record that it began.
"""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rl.errors import ConfigError
from rl.metrics import Sink


def open_sinks(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    tensorboard: bool,
    wandb_project: str,
    mlflow_experiment: str,
    resume_at: int | None = None,
) -> list[Sink]:
    """The sinks that a run's ``logging`` section asks for; ``config`` is the resolved config, for those that keep it.

    ``resume_at`` is the first step that will be recorded again. Raises ConfigError for a package that is missing.
    """
    sinks: list[Sink] = []
    if tensorboard:
        sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_at=resume_at))
    if wandb_project:
        sinks.append(WandbSink(run_dir, config, project=wandb_project))
    if mlflow_experiment:
        sinks.append(MlflowSink(run_dir, config, experiment=mlflow_experiment))
    return sinks


class TensorBoardSink:
    """Event files, written by TensorBoard's own writer, which needs neither torch nor TensorFlow."""

    def __init__(self, directory: Path, *, resume_at: int | None = None) -> None:
        writer = _require(
            "tensorboard.summary.writer.event_file_writer", package="tensorboard", key="logging.tensorboard"
        )
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(directory))
        if resume_at is not None:  # tells the reader to forget what it read of this step and later ones
            started = self._event.SessionLog(status=self._event.SessionLog.START)
            self._writer.add_event(self._event.Event(step=resume_at, session_log=started))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = self._summary.Summary(value=scalars)
        self._writer.add_event(self._event.Event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WandbSink:
    """A Weights & Biases run. Steps are a metric of their own, so that a resumed run may write a step again."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], *, project: str) -> None:
        wandb = _require("wandb", package="wandb", key="logging.wandb_project")
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(config),
            id=_remembered(run_dir / "wandb_run_id", lambda: uuid.uuid4().hex),
            resume="allow",
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowSink:
    """An MLflow run under the tracking URI that MLflow itself is set to."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], *, experiment: str) -> None:
        mlflow = _require("mlflow", package="mlflow", key="logging.mlflow_experiment")
        self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
        self._run_id = _remembered(run_dir / "mlflow_run_id", lambda: self._create(mlflow, run_dir, config, experiment))
        self._client.update_run(self._run_id, status="RUNNING")

    def _create(self, mlflow: ModuleType, run_dir: Path, config: Mapping[str, Any], experiment: str) -> str:
        experiment_id = mlflow.set_experiment(experiment).experiment_id
        run_id: str = self._client.create_run(experiment_id, run_name=run_dir.name).info.run_id
        self._client.log_dict(run_id, dict(config), "config.yaml")
        return run_id

    def record(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run_id, status="FAILED" if failed else "FINISHED")


def _require(module: str, *, package: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{key} asks for {package}, which cannot be imported here ({error}); install it with "
            f"'pip install {package}' or leave {key} out of the config"
        ) from error


def _remembered(path: Path, make: Callable[[], str]) -> str:
    """The identifier kept in ``path``, made anew where there is none."""
    if not path.exists():
        identifier = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(identifier, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
