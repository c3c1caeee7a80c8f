"""What `nemo-probsft launch` is asked for, and what becomes of it: plain values between the checks and NeMo-Run."""

from __future__ import annotations

from dataclasses import dataclass, field

EXECUTORS = ("local", "slurm", "kubeflow")


@dataclass(frozen=True)
class Mount:
    """A directory of the container.

    source: the cluster's directory, or a volume claim of Kubernetes. flags: as in :ro.
    """

    source: str
    directory: str
    flags: str


@dataclass(frozen=True)
class Options:
    """The flags of the command. None and empty values: not given."""

    recipe: str
    overrides: list[str]
    executor: str
    nodes: int | None = None
    dry_run: bool = False
    name: str | None = None
    objectives: str | None = None
    seeds: str | None = None
    env: list[tuple[str, str]] = field(default_factory=list)  # name and value
    container_image: str | None = None
    mount: list[Mount] = field(default_factory=list)
    gpus_per_node: int | None = None
    account: str | None = None
    partition: str | None = None
    time: str | None = None
    requeue: int | None = None  # how often at most
    sbatch: list[str] = field(default_factory=list)
    namespace: str | None = None
    runtime: str | None = None


@dataclass(frozen=True)
class Submission:
    """What is handed to NeMo-Run. Each of the `commands` is a cell of a sweep, with `nodes` nodes of its own."""

    name: str
    commands: dict[str, list[str]]  # name -> arguments of nemo-probsft
    nodes: int
    ranks_per_node: int
    gpus_per_node: int  # 0: the scheduler is not asked for any
    options: Options
