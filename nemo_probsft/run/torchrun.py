"""`python -m nemo_probsft.run.torchrun PID ARGUMENTS`: torchrun that ends with process PID, and its ranks with it.

It asks for that itself, since code of ours between fork and exec (`preexec_fn`) can hang in a process with threads.
"""

import os
import sys

from nemo_probsft.run.ranks import TORCHRUN_PID, end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    os.environ[TORCHRUN_PID] = str(os.getpid())
    from torch.distributed.run import main

    main(sys.argv[2:])
