"""`python -m nemo_probsft.rank ARGUMENTS`: one rank of a command, as our launcher has torchrun start it.

Whatever ends it by an exception leaves an error file beside its logs: what it imports is imported inside, too.
"""

import sys


def main() -> int:
    """Run one command. Raises what the command raises."""
    from nemo_probsft.__main__ import main as command

    try:
        return command(sys.argv[1:])
    except (Exception, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # CheckpointException is no Exception (torch 2.13), and `record` writes only those
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record

    sys.exit(record(main)())
