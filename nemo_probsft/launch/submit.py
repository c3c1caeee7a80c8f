"""`nemo-probsft launch RECIPE`: the same `nemo-probsft train RECIPE`, run by a scheduler through NeMo-Run.

Everything that can be refused is refused here, before anything is submitted; `adapters/nemo_run.py` talks to NeMo-Run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_probsft.config import Recipe

EXECUTORS = ("local", "slurm", "kubeflow", "skypilot")
CLUSTERS = EXECUTORS[1:]
# Which executors an option means something to; elsewhere it is refused.
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
    "gpu_type": ("skypilot",),
    "infra": ("skypilot",),
}
# Later clients of Kubernetes do not work with the urllib3 1.26 that torchx, NeMo-Run's backend, asks for.
PACKAGES = {"kubeflow": ("kubernetes", "kubernetes<32"), "skypilot": ("sky", "skypilot[kubernetes]>=0.12.3")}
REQUEUES = 20
MOUNT = re.compile(r"((?:[a-z0-9]+://)?[^:,]+):(/[^:,]*)(:[a-z,+]+)?")  # the source may be a URL; flags such as :ro


@dataclass(frozen=True)
class Submission:
    """What is handed to NeMo-Run. Each of the `commands` is a cell of a sweep, with `nodes` nodes of its own."""

    commands: dict[str, list[str]]  # name -> arguments of nemo-probsft
    nodes: int
    ranks_per_node: int
    gpus_per_node: int  # 0: the scheduler is not asked for any
    options: argparse.Namespace  # as `parse` returns them


def launch(arguments: Sequence[str]) -> None:
    """Run `nemo-probsft launch ARGUMENTS`. Raises ValueError before anything is submitted, RuntimeError after."""
    submission = plan(parse(arguments))
    from nemo_probsft.launch import nemo_run

    if submission.options.dry_run:
        print(nemo_run.dry_run(submission), end="")
        return
    if submission.options.executor == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("sbatch is not on PATH; submit from a login node of the cluster, or look at it with --dry-run")
    for place in nemo_run.submit(submission):
        print(place)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, each a valid one for the executor. Raises ValueError."""
    options = _parser().parse_intermixed_args(arguments)
    if options.executor not in EXECUTORS:
        raise ValueError(f"--executor: {options.executor} is none of {', '.join(EXECUTORS)}")
    for name, executors in OPTIONS.items():
        if getattr(options, name) not in (None, []) and options.executor not in executors:
            flag, where = "--" + name.replace("_", "-"), " and ".join(executors)
            raise ValueError(f"{flag} has no effect with --executor {options.executor}, only with {where}; remove it")
    options.env = dict(_variable(text) for text in options.env)
    options.mount = [_mount(text) for text in options.mount]
    if options.name is None:
        options.name = re.sub("[^A-Za-z0-9.-]+", "-", Path(options.recipe).stem).strip("-.") or "train"
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9.-]*", options.name):
        raise ValueError(f"--name: {options.name} is not a name; use letters, digits, dots and dashes")
    _check_executor(options)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nemo-probsft launch",
        description="Submit `nemo-probsft train RECIPE key=value ...` through NeMo-Run. With --objectives or --seeds: "
        "one job a cell, on Slurm as a job array.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    parser.add_argument("--executor", required=True, metavar="|".join(EXECUTORS))
    parser.add_argument("--nodes", type=_count, metavar="N", help="default: the recipe's trainer.num_nodes")
    parser.add_argument("--dry-run", action="store_true", help="print the script or manifest; submit and write nothing")
    parser.add_argument("--name", help="of the job (default: the recipe's file name)")
    parser.add_argument("--objectives", metavar="A,B", help="one job for each, in RUN_DIR/OBJECTIVE-seedSEED")
    parser.add_argument("--seeds", metavar="0,1", help="one job for each")
    parser.add_argument(
        "--env", action="append", default=[], metavar="KEY=VALUE", help="variable of the job; repeatable"
    )
    container = parser.add_argument_group("clusters")
    container.add_argument("--container-image", metavar="IMAGE", help="that has nemo-probsft, see Dockerfile")
    container.add_argument(
        "--mount", action="append", default=[], metavar="SRC:DST", help="SRC: directory, volume claim on Kubernetes"
    )
    container.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="to ask for (default: trainer.devices); 0 asks for none"
    )
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--account")
    slurm.add_argument("--partition")
    slurm.add_argument("--time", metavar="D-HH:MM:SS", help="limit (default: the partition's)")
    slurm.add_argument(
        "--requeue",
        type=_count,
        nargs="?",
        const=REQUEUES,
        metavar="N",
        help=f"up to N times (default {REQUEUES}), 2 minutes before the limit and after a failure; the run goes on "
        "from its last checkpoint",
    )
    slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="FLAG[=VALUE]",
        help="any other flag of sbatch, such as qos=high",
    )
    kubeflow = parser.add_argument_group("kubeflow")
    kubeflow.add_argument("--namespace", help="(default: default)")
    kubeflow.add_argument("--runtime", metavar="NAME", help="ClusterTrainingRuntime (default: torch-distributed)")
    skypilot = parser.add_argument_group("skypilot")
    skypilot.add_argument("--gpu-type", metavar="NAME", help="accelerator, such as H100")
    skypilot.add_argument("--infra", metavar="NAME", help="such as k8s, aws or gcp/us-central1")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"--env: {text} is not NAME=VALUE")
    return name, value


def _mount(text: str) -> tuple[str, str, str]:
    """Source, directory in the container, flags."""
    match = MOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"--mount: {text} is not SOURCE:DIRECTORY with an absolute directory in the container")
    return match[1], match[2], match[3] or ""


def plan(options: argparse.Namespace) -> Submission:
    """The commands and what they need, after every check that can be made here. Raises ValueError."""
    from nemo_probsft import config

    overrides = _with_nodes(options)
    recipe = config.load(options.recipe, overrides, own_objective=options.objectives is None)
    commands = {}
    for name, changes in _cells(recipe, options).items():
        arguments = [*(text for text in overrides if not changes or not text.startswith("run_dir=")), *changes]
        _check(config.load(options.recipe, arguments), options)
        commands[name] = ["train", options.recipe, *arguments]
    nodes, devices = recipe.trainer.num_nodes, recipe.trainer.devices
    gpus = devices if options.gpus_per_node is None else options.gpus_per_node
    if gpus < 0 or 0 < gpus < devices:
        raise ValueError(f"--gpus-per-node: {gpus} is fewer than trainer.devices {devices}; lower that")
    if options.executor == "local" and nodes > 1:
        raise ValueError(f"--executor local is this machine, but {nodes} nodes are asked for; use 1")
    return Submission(commands, nodes, devices, gpus, options)


def _with_nodes(options: argparse.Namespace) -> list[str]:
    """The overrides, with --nodes as one. Raises ValueError where the recipe or another override says otherwise."""
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


def _cells(recipe: Recipe, options: argparse.Namespace) -> dict[str, list[str]]:
    """Name -> overrides of each cell; one without overrides when nothing is swept. `sweep` names cells alike."""
    from nemo_probsft.objectives import parse_objective
    from nemo_probsft.sweep import entries

    if options.objectives is None and options.seeds is None:
        return {options.name: []}
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
            raise ValueError(f"{name} is asked for twice; give each objective and each seed once")
        cells[name] = [*changes, f"run_dir={Path(recipe.run_dir, name)}"]
    return cells


def _check_executor(options: argparse.Namespace) -> None:
    executor = options.executor
    if executor == "slurm" and options.account is None:
        raise ValueError("--executor slurm needs --account; `sacctmgr show associations` lists yours")
    if executor == "slurm" and options.mount and options.container_image is None:
        raise ValueError(f"--mount: {options.mount[0][0]} has no effect without --container-image")
    paths = (str(Path.cwd()), os.environ.get("NEMORUN_HOME", ""), options.recipe, *options.overrides)
    if executor == "slurm" and options.container_image is None and (found := [p for p in paths if "/nemo_run" in p]):
        # In a job without a container NeMo-Run replaces /nemo_run, wherever it stands, by the job's directory.
        raise ValueError(f"{found[0]}: NeMo-Run would replace /nemo_run in it; use a path without")
    if executor in ("kubeflow", "skypilot") and options.container_image is None:
        raise ValueError(f"--executor {executor} needs --container-image, one that has nemo-probsft (see Dockerfile)")
    if executor == "skypilot" and options.gpu_type is None and options.gpus_per_node != 0:
        raise ValueError("--executor skypilot needs --gpu-type, such as H100, or --gpus-per-node 0")
    if executor in PACKAGES and importlib.util.find_spec(PACKAGES[executor][0]) is None:
        raise ValueError(f"--executor {executor} needs a package; pip install '{PACKAGES[executor][1]}'")


def _check(recipe: Recipe, options: argparse.Namespace) -> None:
    """What `train` will check when it starts, where the job has the paths of this machine."""
    in_another_place = options.executor in ("kubeflow", "skypilot")
    moved = any(source != directory for source, directory, _ in options.mount)
    if not in_another_place and not moved:
        from nemo_probsft.run import preflight

        preflight.check(recipe, here=options.executor == "local")
