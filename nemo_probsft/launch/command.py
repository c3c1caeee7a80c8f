"""`nemo-probsft launch RECIPE`: its flags. A scheduler runs the same `nemo-probsft train RECIPE`, through NeMo-Run.

Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import re
import shutil

from nemo_probsft.command_line import add_recipe, count, options_of
from nemo_probsft.launch.submission import EXECUTORS, Mount, Options

REQUEUES = 20
MOUNT = re.compile(r"([^:,]+):(/[^:,]*)(:[a-z,+]+)?")  # flags such as :ro


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Submit `nemo-probsft train RECIPE key=value ...` to a scheduler, through NeMo-Run.\n"
        "Everything is checked before anything is submitted. With --objectives or --seeds you get one job for each\n"
        "combination; on Slurm they are a job array."
    )
    add_recipe(parser)
    parser.add_argument(
        "--executor",
        required=True,
        choices=EXECUTORS,
        help="where to run: local is this machine; kubeflow is untested on a cluster (only its manifest was checked)",
    )
    parser.add_argument(
        "--nodes", type=count, metavar="N", help="number of nodes (default: trainer.num_nodes of the recipe)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script or manifest; submit and write nothing")
    parser.add_argument("--name", type=_name, help="name of the job (default: file name of the recipe)")
    parser.add_argument(
        "--objectives", metavar="A,B", help="submit one job for each objective, in RUN_DIR/OBJECTIVE-seedSEED"
    )
    parser.add_argument("--seeds", metavar="0,1", help="submit one job for each seed")
    parser.add_argument(
        "--env", type=_variable, action="append", default=[], metavar="NAME=VALUE", help="set a variable; repeatable"
    )
    _add_clusters(parser.add_argument_group("slurm and kubeflow"))
    _add_slurm(parser.add_argument_group("slurm"))
    _add_kubeflow(parser.add_argument_group("kubeflow"))


def _add_clusters(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--container-image",
        metavar="IMAGE",
        help="run in this image, which has nemo-probsft and an engine, see Dockerfile (default on Slurm: no container)",
    )
    group.add_argument(
        "--mount",
        type=_mount,
        action="append",
        default=[],
        metavar="SOURCE:DIRECTORY",
        help="mount SOURCE, a directory or on Kubernetes a volume claim, in the container; repeatable",
    )
    group.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="N",
        help="ask for N GPUs per node, 0 for none (default: trainer.devices of the recipe)",
    )


def _add_slurm(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--account", help="account to charge; required")
    group.add_argument("--partition", help="partition (default: the cluster's)")
    group.add_argument("--time", metavar="D-HH:MM:SS", help="time limit (default: the partition's)")
    group.add_argument(
        "--requeue",
        type=count,
        nargs="?",
        const=REQUEUES,
        metavar="N",
        help=f"requeue the job up to N times ({REQUEUES} without N; default: never), 2 minutes before its limit or "
        "after a failure; the run resumes from its last checkpoint",
    )
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="FLAG[=VALUE]",
        help="pass another flag to sbatch, such as qos=high; repeatable",
    )


def _add_kubeflow(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--namespace", help="namespace of the job (default: default)")
    group.add_argument("--runtime", metavar="NAME", help="ClusterTrainingRuntime to use (default: torch-distributed)")


def _name(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9.-]*", text):
        raise argparse.ArgumentTypeError(f"{text} is not a name; use letters, digits, dots and dashes")
    return text


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, value


def _mount(text: str) -> Mount:
    match = MOUNT.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not SOURCE:DIRECTORY with an absolute directory in the container")
    return Mount(match[1], match[2], match[3] or "")


def run(options: argparse.Namespace) -> None:
    """Raises ValueError before anything is submitted, RuntimeError after."""
    from nemo_probsft.launch.submit import checked

    submission = checked(options_of(Options, options))
    from nemo_probsft.launch import nemo_run

    if options.dry_run:
        print(nemo_run.dry_run(submission), end="")
        return
    if options.executor == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("sbatch is not on PATH; submit from a login node of the cluster, or try --dry-run")
    for place in nemo_run.submit(submission):
        print(place)
