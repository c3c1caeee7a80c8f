"""`python -m evaluation ARGUMENTS`: `nemo-probsft eval` in this Python, which must have vLLM."""

import sys

from evaluation.command import add_arguments, run_here
from nemo_probsft.command_line import answer, run_command
from nemo_probsft.run.parents import end_with_command

if __name__ == "__main__":
    end_with_command()
    sys.exit(answer(lambda: run_command("eval", add_arguments, run_here, sys.argv[1:])))
