"""`python -m nemo_probsft.run.torchrun PID LOG_DIR ARGUMENTS`: torchrun that ends with process PID, its ranks with it.

It asks for that itself, since code of ours between fork and exec (`preexec_fn`) can hang in a process with threads.
The exit codes of ranks that failed go to LOG_DIR.
"""

import os
import sys
from pathlib import Path

from nemo_probsft.run.failures import write_exit_codes
from nemo_probsft.run.parents import end_with_parent
from nemo_probsft.run.ranks import TORCHRUN_PID

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    os.environ[TORCHRUN_PID] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(sys.argv[3:])
    except ChildFailedError as error:
        write_exit_codes(Path(sys.argv[2]), error.failures)
        raise
