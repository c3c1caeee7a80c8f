"""In the evaluation environment: the token ids that the harness's own requests for a task's first item come to.

python -m tests.support.harness_prompts DATA_DIR TASK,... TOKENIZER_DIR ...  prints {tokenizer: {task: ids}} as JSON.
"""

import json
import sys
from functools import partial

from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from evaluation.prompt_tokens import prompt_ids
from evaluation.runner import TASKS_DIR


def main(data_dir: str, tasks: str, *tokenizers: str) -> None:
    manager = TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata={"data_dir": data_dir})
    found: dict[str, dict[str, list[int]]] = {directory: {} for directory in tokenizers}
    for name in tasks.split(","):
        for directory in tokenizers:
            tokenizer = AutoTokenizer.from_pretrained(directory)
            rendered = tokenizer.chat_template is not None
            task = manager.load(name)["tasks"][name]
            task.build_all_requests(
                limit=1,
                rank=0,
                world_size=1,
                apply_chat_template=rendered,
                chat_template=partial(tokenizer.apply_chat_template, tokenize=False) if rendered else None,
            )
            (found[directory][name],) = prompt_ids(tokenizer, [task.instances[0].args[0]], rendered=rendered)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
