"""The checks of `nemo-probsft launch`, all made before anything is submitted, and the commands of each job."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_probsft.command_line import entries
from nemo_probsft.launch.submission import Options, Submission

if TYPE_CHECKING:
    from nemo_probsft.config import Recipe

CLUSTERS = ("slurm", "kubeflow")
# The executors that an option is for; the others refuse it.
OPTIONS = {
    "container_image": CLUSTERS,
    "mount": CLUSTERS,
    "gpus_per_node": CLUSTERS,
    "account": ("slurm",),
    "partition": ("slurm",),
    "time": ("slurm",),
    "requeue": ("slurm",),
    "sbatch": ("slurm",),
    "namespace": ("kubeflow",),
    "runtime": ("kubeflow",),
}
# Later clients of Kubernetes do not work with the urllib3 1.26 that torchx, NeMo-Run's backend, asks for.
PACKAGES = {"kubeflow": ("kubernetes", "kubernetes<32")}


def checked(options: Options) -> Submission:
    """The commands and what they need, after every check that can be made here. Raises ValueError."""
    from nemo_probsft import config

    _check_options(options)
    job_name = options.name or _name_of(options.recipe)
    overrides = _with_nodes(options)
    recipe = config.load(options.recipe, overrides, own_objective=options.objectives is None)
    commands = {}
    for name, changes in (_cells(recipe, options) or {job_name: []}).items():
        arguments = [*(text for text in overrides if not changes or not text.startswith("run_dir=")), *changes]
        _check(config.load(options.recipe, arguments), options)
        commands[name] = ["train", options.recipe, *arguments]
    nodes, devices = recipe.trainer.num_nodes, recipe.trainer.devices
    gpus = devices if options.gpus_per_node is None else options.gpus_per_node
    if gpus < 0 or 0 < gpus < devices:
        raise ValueError(f"--gpus-per-node: {gpus} is fewer than trainer.devices {devices}; lower trainer.devices")
    if options.executor == "local" and nodes > 1:
        raise ValueError(f"--executor local is this machine, but you ask for {nodes} nodes; use 1")
    return Submission(job_name, commands, nodes, devices, gpus, options)


def _name_of(recipe: str) -> str:
    return re.sub("[^A-Za-z0-9.-]+", "-", Path(recipe).stem).strip("-.") or "train"


def _with_nodes(options: Options) -> list[str]:
    """The overrides, with --nodes as one. Raises ValueError if the recipe or another override contradicts it."""
    from nemo_probsft import config
    from nemo_probsft.config import strictyaml

    if options.nodes is None:
        return options.overrides
    key = "trainer.num_nodes="
    stated = next((text.removeprefix(key) for text in options.overrides if text.startswith(key)), None)
    overrides = options.overrides if stated else [*options.overrides, f"{key}{options.nodes}"]
    config.load(options.recipe, overrides, own_objective=False)
    if stated is None:
        written = strictyaml.plain(strictyaml.parse(Path(options.recipe).read_text(encoding="utf-8-sig"), str))
        stated = written.get("trainer", {}).get("num_nodes", options.nodes)
    if str(stated) != str(options.nodes):
        raise ValueError(f"trainer.num_nodes: {stated} contradicts --nodes {options.nodes}; change one of them")
    return overrides


def _cells(recipe: Recipe, options: Options) -> dict[str, list[str]]:
    """Name -> overrides of each cell, named as `sweep` names them; none if nothing is swept."""
    from nemo_probsft.objectives import parse_objective

    if options.objectives is None and options.seeds is None:
        return {}
    objectives: list[str | None] = [None]
    if options.objectives is not None:
        objectives = [parse_objective(text).key for text in entries("--objectives", options.objectives)]
    seeds = [str(recipe.trainer.seed)] if options.seeds is None else entries("--seeds", options.seeds)
    cells: dict[str, list[str]] = {}
    for objective, seed in itertools.product(objectives, seeds):
        name = f"seed{seed}" if objective is None else f"{objective}-seed{seed}"
        changes = [] if objective is None else [f"objective={objective}"]
        changes += [] if options.seeds is None else [f"trainer.seed={seed}"]
        if name in cells:
            raise ValueError(f"{name} is asked for twice; name each objective and each seed once")
        cells[name] = [*changes, f"run_dir={Path(recipe.run_dir, name)}"]
    return cells


def _check_options(options: Options) -> None:
    executor = options.executor
    for name, executors in OPTIONS.items():
        if getattr(options, name) not in (None, []) and executor not in executors:
            flag, where = "--" + name.replace("_", "-"), " and ".join(executors)
            raise ValueError(f"{flag} has no effect with --executor {executor}, only with {where}; remove it")
    if executor == "slurm" and options.account is None:
        raise ValueError("--executor slurm needs --account; `sacctmgr show associations` lists yours")
    if executor == "slurm" and options.mount and options.container_image is None:
        raise ValueError(f"--mount: {options.mount[0].source} has no effect without --container-image")
    paths = (str(Path.cwd()), os.environ.get("NEMORUN_HOME", ""), options.recipe, *options.overrides)
    if executor == "slurm" and options.container_image is None and (found := [p for p in paths if "/nemo_run" in p]):
        # In a job without a container NeMo-Run replaces /nemo_run, wherever it stands, by the job's directory.
        raise ValueError(f"{found[0]}: NeMo-Run would replace /nemo_run in this path; use another")
    if executor == "kubeflow" and options.container_image is None:
        raise ValueError(f"--executor {executor} needs --container-image with nemo-probsft in it, see Dockerfile")
    package, requirement = PACKAGES.get(executor, (None, None))
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(f"--executor {executor} needs the package {package}; run pip install '{requirement}'")


def _check(recipe: Recipe, options: Options) -> None:
    """What `train` will check when it starts, if the job sees the paths of this machine."""
    moved = any(mount.source != mount.directory for mount in options.mount)
    if options.executor != "kubeflow" and not moved:
        from nemo_probsft.run import preflight

        preflight.check(recipe, here=options.executor == "local")
