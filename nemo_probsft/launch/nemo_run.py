"""A submission as NeMo-Run's executors and scripts: what they would run, and running it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nemo_run as run
import yaml
from invoke.exceptions import UnexpectedExit
from nemo_run.core.execution.slurm import SlurmJobDetails
from nemo_run.core.frontend.console.api import CONSOLE
from nemo_run.run.job import Job
from torchx.specs.api import AppState
from urllib3.exceptions import HTTPError

from nemo_probsft.launch.submission import Submission

SECONDS_BEFORE_LIMIT = 120  # a requeued job ends by itself, so that the script that started it can put it back


def dry_run(submission: Submission) -> str:
    """The scripts or manifests that would be submitted; what NeMo-Run writes for it is removed again."""
    with tempfile.TemporaryDirectory() as folder, _experiment(submission, folder) as experiment:
        _add(experiment, submission)
        experiment.dryrun(log=False, delete_exp_dir=False)
        if submission.options.executor == "slurm":
            return _written(Path(folder))
        return "---\n".join(_manifest(job) for job in experiment.jobs)


def submit(submission: Submission) -> list[str]:
    """Submit, and with the local executor wait for the end. Returns a line for each job: its handle, its directory.

    Raises RuntimeError when the scheduler refuses the job, or the local one fails.
    """
    executor = submission.options.executor
    local = executor == "local"
    try:
        experiment = _experiment(submission, None)
        with _ending_with_this(experiment) if local else contextlib.nullcontext(), experiment:
            _add(experiment, submission)
            experiment.run(detach=not local, sequential=local)  # on one machine the cells take turns
            experiment.detach = not local  # NeMo-Run would wait for Kubeflow's jobs, which need nobody to wait
    except _refusals(executor) as error:
        reason = error.result.stderr if isinstance(error, UnexpectedExit) else str(error)
        raise RuntimeError(f"{executor}: {' '.join(reason.split())}") from error
    failed = [job for job in experiment.jobs if job.state in (AppState.FAILED, AppState.CANCELLED)]
    if failed:
        raise RuntimeError(f"{failed[0].id} failed; its output is in {failed[0].executor.job_dir}")
    return [f"{job.handle}  {job.executor.job_dir}" for job in experiment.jobs]


@contextlib.contextmanager
def _ending_with_this(experiment: run.Experiment) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the jobs, too; NeMo-Run starts them in sessions of their own and would wait for them."""

    def stop(number: int, frame: object) -> None:
        for job in experiment.jobs:
            experiment.cancel(job.id)
        raise RuntimeError(f"stopped by signal {number}; the same command continues from the last checkpoint")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refusals(executor: str) -> tuple[type[Exception], ...]:
    if executor != "kubeflow":
        return (UnexpectedExit,)  # of sbatch
    from kubernetes.client.exceptions import ApiException

    return (ApiException, HTTPError)


def _experiment(submission: Submission, folder: str | None) -> run.Experiment:
    """`folder`: where NeMo-Run keeps its files; None means its own, NEMORUN_HOME."""
    CONSOLE.quiet = True
    return run.Experiment(
        submission.name,
        base_dir=folder,
        log_level="WARNING",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
    )


def _add(experiment: run.Experiment, submission: Submission) -> None:
    options, commands, name = submission.options, submission.commands, submission.name
    executor = {"local": _local, "slurm": _slurm, "kubeflow": _kubeflow}[options.executor]
    if options.executor == "slurm" and len(commands) > 1:
        experiment.add(_array_script(commands), executor=executor(submission), name=name)
        return
    for cell, arguments in commands.items():
        job_name = name if len(commands) == 1 else f"{name}-{cell}"
        script = _script(submission, arguments)
        experiment.add(script, executor=executor(submission), name=job_name, tail_logs=options.executor == "local")


def _script(submission: Submission, arguments: list[str]) -> run.Script:
    """`nemo-probsft ARGUMENTS`, on several nodes under torchrun, whose ranks `train` joins."""
    executor, many = submission.options.executor, submission.nodes > 1
    if many and executor == "kubeflow":  # its operator sets torchrun's rendezvous in the environment
        return run.Script(entrypoint="torchrun", path="--no-python", args=["nemo-probsft", *arguments])
    if many:  # NeMo-Run's launcher puts torchrun and its rendezvous before it, and quotes
        return run.Script(entrypoint="nemo-probsft", path="nemo-probsft", args=arguments)
    if executor == "slurm":  # becomes a line of a shell script
        arguments = [shlex.quote(argument) for argument in arguments]
    return run.Script(entrypoint="nemo-probsft", path=arguments[0], args=arguments[1:])


def _array_script(commands: dict[str, list[str]]) -> run.Script:
    """NeMo-Run has one command for all elements of an array: a script that looks which one it is."""
    cells = (f"{number}) exec nemo-probsft {shlex.join(cell)} ;;" for number, cell in enumerate(commands.values()))
    return run.Script(inline="\n".join(["case $SLURM_ARRAY_TASK_ID in", *cells, "esac", ""]))


def _local(submission: Submission) -> run.LocalExecutor:
    path = os.pathsep.join([_scripts_directory(), os.environ["PATH"]])
    return run.LocalExecutor(env_vars={"PATH": path, **dict(submission.options.env)})


def _slurm(submission: Submission) -> run.SlurmExecutor:
    options, here = submission.options, os.getcwd()
    # srun's unbuffered output is a pseudo-terminal, in which progress bars would be drawn; Python is unbuffered anyway.
    # NeMo-Run's env_vars would come in upper case and without quotes.
    setup = ["unset SLURM_UNBUFFEREDIO"]
    setup += [f"export {name}={shlex.quote(value)}" for name, value in options.env]
    if options.container_image is None:
        setup.append(f"export PATH={shlex.quote(_scripts_directory())}:$PATH")
    flags = (text.partition("=") for text in options.sbatch)
    return run.SlurmExecutor(
        account=options.account,
        partition=options.partition,
        time=options.time,
        nodes=submission.nodes,
        ntasks_per_node=1,
        torchrun_nproc_per_node=submission.ranks_per_node,
        gpus_per_node=submission.gpus_per_node or None,
        container_image=options.container_image,
        container_mounts=[
            f"{here}:{here}",
            *(f"{mount.source}:{mount.directory}{mount.flags}" for mount in options.mount),
        ],
        container_env=list(dict(options.env)) or None,
        array=f"0-{len(submission.commands) - 1}" if len(submission.commands) > 1 else None,
        signal=f"TERM@{SECONDS_BEFORE_LIMIT}" if options.requeue else None,
        retries=options.requeue or 0,
        additional_parameters={name.replace("-", "_"): value if equals else True for name, equals, value in flags},
        setup_lines="\n".join(setup),
        launcher=run.Torchrun() if submission.nodes > 1 else None,
        packager=run.GitArchivePackager(symlink_from_remote_dir=here),  # the job starts where the user stands
        job_details=SlurmJobDetails(job_name=submission.name),
        poll_estimated_start_time=False,
    )


def _kubeflow(submission: Submission) -> run.KubeflowExecutor:
    from kubernetes.config import ConfigException

    options = submission.options
    try:
        return run.KubeflowExecutor(
            image=options.container_image,
            namespace=options.namespace or "default",
            runtime_ref=options.runtime or "torch-distributed",
            num_nodes=submission.nodes,
            nprocs_per_node=submission.ranks_per_node,
            gpus_per_node=submission.gpus_per_node or None,
            env_vars=dict(options.env),
            volumes=[
                {"name": f"mount-{number}", "persistentVolumeClaim": {"claimName": mount.source}}
                for number, mount in enumerate(options.mount)
            ],
            volume_mounts=[
                {"name": f"mount-{number}", "mountPath": mount.directory} for number, mount in enumerate(options.mount)
            ],
            train_job_basename=submission.name,
        )
    except ConfigException as error:
        raise ValueError(
            f"--executor kubeflow found no cluster ({error}); set KUBECONFIG to your kubeconfig"
        ) from error


def _scripts_directory() -> str:
    """Where `nemo-probsft` and `torchrun` of this Python are."""
    return str(Path(sys.executable).parent)


def _written(folder: Path) -> str:
    """The sbatch script, then the script that it runs, if NeMo-Run wrote one."""
    sbatch = sorted(folder.rglob("*_sbatch.sh"))
    return "".join(path.read_text(encoding="utf-8") + "\n" for path in [*sbatch, *sorted(folder.rglob("scripts/*.sh"))])


def _manifest(job: Job) -> str:
    info = job._dryrun_info
    if isinstance(job.executor, run.LocalExecutor):
        role = info.request.role_params[job.id][0]
        return shlex.join(role.args) + "\n"
    return yaml.safe_dump(job.executor.get_job_body(job.id, info.request.cmd), sort_keys=False)
