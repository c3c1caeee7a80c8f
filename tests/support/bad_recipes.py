"""Recipes that are refused, each with the exact line that says so; `tests/unit/test_config.py` tries them."""

WHOLE = """\
run_dir: runs/my-run
model: {path: Qwen/Qwen2.5-Math-1.5B}
data: {train: train.jsonl, max_length: 3072, global_batch_size: 256, micro_batch_size: 4}
objective: GeneralFamily-10
parallel:
  tensor_model_parallel_size: 2
  pipeline_model_parallel_size: 1
  context_parallel_size: 1
  sequence_parallel: true
optim: {lr: 5e-5, weight_decay: 0.01, betas: [0.9, 0.95], warmup_ratio: 0.1, schedule: cosine, clip_grad: 1.0}
trainer: {devices: 8, num_nodes: 1, epochs: 1, precision: bf16, seed: 0}
checkpoint: {every_steps: 100}
log: {every_steps: 1}
"""
SMALLEST = "model: {path: a/b}\ndata: {train: t.jsonl}\nobjective: p\n"
OPTIM_KEYS = "lr, min_lr, weight_decay, betas, eps, warmup_ratio, schedule, clip_grad"
BAD_RECIPES = {
    # structure of the file
    "": "r.yaml:1: the recipe is not a mapping; write {model: ..., data: ...}",
    "- p\n": "r.yaml:1: the recipe is not a mapping; write {model: ..., data: ...}",
    SMALLEST + "optim: {lr: [}\n": "r.yaml:4: not valid YAML: expected the node content, but found '}'; correct it",
    SMALLEST + "run_dir: \x00\n": "r.yaml:1: not valid YAML: special characters are not allowed; correct it",
    SMALLEST + "---\n" + SMALLEST: "r.yaml:4: a second YAML document starts here; keep one document in a file",
    SMALLEST + "objective: p\n": 'r.yaml:4: "objective" is given twice (first: r.yaml:3); remove one',
    SMALLEST + "optim:\n  lr: 1\n  lr: 1\n": 'r.yaml:6: "lr" is given twice (first: r.yaml:5); remove one',
    SMALLEST + "optim: &a {lr: 1}\n": (
        "r.yaml:4: YAML anchors and aliases are not supported; write the value where it is used"
    ),
    SMALLEST + "optim:\n  <<: {lr: 1}\n": (f"r.yaml:5: optim.<<: unknown key; choose from {OPTIM_KEYS}"),
    SMALLEST + "run_dir: !!python/name:os.system x\n": (
        'r.yaml:4: YAML tag "tag:yaml.org,2002:python/name:os.system" is not supported (recipes are data); remove it'
    ),
    SMALLEST + "? {a: 1}\n: 2\n": "r.yaml:4: a mapping, list or alias is used as a key; use a plain word",
    SMALLEST + "optim: " + "[" * 40 + "]" * 40: "r.yaml:4: nested more than 16 levels deep; no key is that deep",
    SMALLEST + "optim: " + "[" * 100_000: "r.yaml:4: nested more than 16 levels deep; no key is that deep",
    SMALLEST + 'run_dir: "\\UFFFFFFFF"\n': "r.yaml:1: not valid YAML: an escaped character does not exist; correct it",
    SMALLEST + 'run_dir: "\\ud800"\n': 'r.yaml:4: "\\ud800": half a surrogate pair is no character; remove it',
    SMALLEST + "%YAML 9.9\n---\n": (
        "r.yaml:4: not valid YAML: found incompatible YAML document (version 1.* is required); correct it"
    ),
    SMALLEST + "#" * 2**20: "r.yaml: is longer than 1048576 bytes; name a recipe, which is a page",
    SMALLEST + "\tseed: 1\n": (
        "r.yaml:4: not valid YAML: found character '\\t' that cannot start any token; correct it"
    ),
    # keys
    SMALLEST + "optim: {leaning_rate: 1}\n": (f"r.yaml:4: optim.leaning_rate: unknown key; choose from {OPTIM_KEYS}"),
    SMALLEST + "optim: {wait_decay: 1}\n": "r.yaml:4: optim.wait_decay: unknown key; did you mean optim.weight_decay?",
    SMALLEST + "parallel:\n  tensor_parallel_size: 2\n": (
        "r.yaml:5: parallel.tensor_parallel_size: unknown key; did you mean parallel.tensor_model_parallel_size?"
    ),
    SMALLEST + "seed: 3\n": "r.yaml:4: seed: unknown key; did you mean trainer.seed?",
    SMALLEST + "optimizer: {lr: 1}\n": "r.yaml:4: optimizer: unknown key; did you mean optim?",
    SMALLEST + "log: {wandb: {project: x, entity: y}}\n": (
        "r.yaml:4: log.wandb.entity: unknown key; choose from project, name"
    ),
    SMALLEST + "_target_: os.system\n": "r.yaml:4: _target_: recipes are data, they cannot name code to run; remove it",
    SMALLEST + "optim: {_target_: os.system}\n": (
        "r.yaml:4: optim._target_: recipes are data, they cannot name code to run; remove it"
    ),
    SMALLEST + "tree: {}\n": (
        "r.yaml:4: tree: unknown key; choose from model, data, objective, run_dir, engine, validate, parallel, optim, "
        "trainer, head, peft, checkpoint, log, export, diagnose"
    ),
    "data: {train: t}\nobjective: p\n": "r.yaml:1: model: missing; give model: {path: ...}",
    "model: {}\ndata: {train: t}\nobjective: p\n": (
        "r.yaml:1: model.path: missing; give a Hugging Face directory or hub name, or a checkpoint of an engine"
    ),
    "model: {path: a}\ndata: {}\nobjective: p\n": (
        "r.yaml:2: data.train: missing; give a .jsonl or .parquet file, or the name of a Hugging Face data set"
    ),
    "model: {path: a}\ndata: {train: t}\n": (
        "r.yaml:1: objective: missing; give a key such as p, or {name: power, alpha: 10}"
    ),
    # types
    SMALLEST + "optim:\n": "r.yaml:4: optim: null is not a mapping; write {lr: ..., min_lr: ...}",
    SMALLEST + "optim: 5e-5\n": "r.yaml:4: optim: 5e-05 is not a mapping; write {lr: ..., min_lr: ...}",
    SMALLEST + "optim:\n  lr: fast\n": 'r.yaml:5: optim.lr: "fast" is not allowed; expected a finite number',
    SMALLEST + "optim: {lr: null}\n": "r.yaml:4: optim.lr: null is not allowed; expected a finite number",
    SMALLEST + "optim: {lr: true}\n": "r.yaml:4: optim.lr: true is not allowed; expected a finite number",
    SMALLEST + "optim: {lr: .inf}\n": "r.yaml:4: optim.lr: Infinity is not allowed; expected a finite number",
    SMALLEST + "optim: {lr: 1e999}\n": "r.yaml:4: optim.lr: Infinity is not allowed; expected a finite number",
    SMALLEST + "optim: {lr: '5e-5'}\n": (
        'r.yaml:4: optim.lr: "5e-5" is not allowed; expected a finite number, without quotes'
    ),
    SMALLEST + "optim: {betas: 0.9}\n": "r.yaml:4: optim.betas: 0.9 is not allowed; expected a list of 2 numbers",
    SMALLEST + "optim: {betas: [0.9]}\n": "r.yaml:4: optim.betas: [0.9] is not allowed; expected a list of 2 numbers",
    SMALLEST + "optim: {betas: [0.9, x]}\n": 'r.yaml:4: optim.betas[1]: "x" is not allowed; expected a finite number',
    SMALLEST + "trainer: {devices: 1.5}\n": "r.yaml:4: trainer.devices: 1.5 is not allowed; expected a whole number",
    SMALLEST + "trainer: {devices: 1.0}\n": "r.yaml:4: trainer.devices: 1.0 is not allowed; expected a whole number",
    SMALLEST + "trainer: {devices: true}\n": "r.yaml:4: trainer.devices: true is not allowed; expected a whole number",
    SMALLEST + "trainer: {devices: '4'}\n": (
        'r.yaml:4: trainer.devices: "4" is not allowed; expected a whole number, without quotes'
    ),
    SMALLEST + "export: {at_end: yes}\n": 'r.yaml:4: export.at_end: "yes" is not allowed; expected true or false',
    SMALLEST + "export: {at_end: 1}\n": "r.yaml:4: export.at_end: 1 is not allowed; expected true or false",
    SMALLEST + "run_dir: 7\n": 'r.yaml:4: run_dir: 7 is not text; put it in quotes: "7"',
    SMALLEST + "log: {wandb: x}\n": 'r.yaml:4: log.wandb: "x" is not a mapping; write {project: ..., name: ...}',
    SMALLEST + "log: {wandb: {}}\n": "r.yaml:4: log.wandb.project: missing; give a W&B project",
    SMALLEST + "trainer: {precision: fp16}\n": (
        'r.yaml:4: trainer.precision: "fp16" is not allowed; expected one of bf16, fp32; did you mean bf16?'
    ),
    SMALLEST + "trainer: {recompute: [full]}\n": (
        'r.yaml:4: trainer.recompute: ["full"] is not allowed; expected one of none, selective, full'
    ),
    SMALLEST + "data_: {long_prompts: skip}\n": "r.yaml:4: data_: unknown key; did you mean data?",
    SMALLEST + "run_dir: runs/${oc.env:HOME}\n": (
        'r.yaml:4: "runs/${oc.env:HOME}": interpolation is not supported; write the value itself'
    ),
    # ranges
    SMALLEST + "optim: {lr: 0}\n": "r.yaml:4: optim.lr: 0 is out of range; use a number above 0",
    SMALLEST + "optim: {lr: -1e-5}\n": "r.yaml:4: optim.lr: -1e-05 is out of range; use a number above 0",
    SMALLEST + "optim: {betas: [0.9, 1.0]}\n": "r.yaml:4: optim.betas[1]: 1.0 is out of range; use a number in [0, 1)",
    SMALLEST
    + "optim: {warmup_ratio: 1.1}\n": "r.yaml:4: optim.warmup_ratio: 1.1 is out of range; use a number in [0, 1]",
    SMALLEST + "optim: {weight_decay: -1}\n": (
        "r.yaml:4: optim.weight_decay: -1 is out of range; use a number of at least 0"
    ),
    SMALLEST + "optim: {clip_grad: -1}\n": "r.yaml:4: optim.clip_grad: -1 is out of range; use a number of at least 0",
    SMALLEST
    + "trainer: {devices: 0}\n": "r.yaml:4: trainer.devices: 0 is out of range; use a number from 1 to 2**31 - 1",
    SMALLEST
    + "trainer: {max_steps: 0}\n": "r.yaml:4: trainer.max_steps: 0 is out of range; use a number from 1 to 2**31 - 1",
    SMALLEST + "trainer: {seed: -1}\n": "r.yaml:4: trainer.seed: -1 is out of range; use a number from 0 to 2**32 - 1",
    SMALLEST + "parallel: {virtual_pipeline_model_parallel_size: 1}\n": (
        "r.yaml:4: parallel.virtual_pipeline_model_parallel_size: 1 is out of range; use a number from 2 to 2**31 - 1"
    ),
    "model: {path: ''}\ndata: {train: t}\nobjective: p\n": (
        'r.yaml:1: model.path: "" is empty; write something, or remove the key'
    ),
    "model: {path: a}\ndata: {train: t, max_length: 1}\nobjective: p\n": (
        "r.yaml:2: data.max_length: 1 is out of range; use a number from 2 to 2**31 - 1"
    ),
    SMALLEST + "trainer: {devices: 2147483648}\n": (
        "r.yaml:4: trainer.devices: 2147483648 is out of range; use a number from 1 to 2**31 - 1"
    ),
    SMALLEST + "trainer: {epochs: 99999999999999999999}\n": (
        "r.yaml:4: trainer.epochs: 1e+20 is not allowed; expected a whole number"
    ),
    SMALLEST + "optim: {lr: 1e-400}\n": "r.yaml:4: optim.lr: 0.0 is out of range; use a number above 0",
    SMALLEST + "optim: {lr: .nan}\n": "r.yaml:4: optim.lr: NaN is not allowed; expected a finite number",
    SMALLEST + "run_dir: ' '\n": 'r.yaml:4: run_dir: " " is empty; write something, or remove the key',
    SMALLEST + 'run_dir: "a\\0b"\n': 'r.yaml:4: run_dir: "a\\u0000b" is not a usable path; name one',
    SMALLEST + f"run_dir: {'a' * 256}\n": f'r.yaml:4: run_dir: "{"a" * 56}... is not a usable path; name one',
    SMALLEST + "run_dir: ~/runs\n": 'r.yaml:4: run_dir: "~/runs": ~ is not expanded; write the directory itself',
    SMALLEST + "diagnose: {output: ~root/x}\n": (
        'r.yaml:4: diagnose.output: "~root/x": ~ is not expanded; write the directory itself'
    ),
    # combinations
    "model: {path: a}\ndata: {train: t, prompt_key: text, response_key: text}\nobjective: p\n": (
        'r.yaml:2: data.response_key: "text" is data.prompt_key, too; name the field that holds the answer'
    ),
    "model: {path: a}\ndata: {train: t, max_length: 8388608}\nobjective: p\n": (
        "r.yaml:2: data.global_batch_size: 256 x data.max_length 8388608 tokens are more than Megatron counts in "
        "int32, 2**31 - 1; lower one of them"
    ),
    SMALLEST + "trainer: {devices: 3}\nparallel: {tensor_model_parallel_size: 2}\n": (
        "r.yaml:4: trainer.devices: 3 x num_nodes 1 is not a multiple of the 2 devices of one model copy "
        "(tensor 2 x pipeline 1 x context 1); change one of them"
    ),
    "model: {path: a}\ndata: {train: t, global_batch_size: 250, micro_batch_size: 4}\nobjective: p\n": (
        "r.yaml:2: data.global_batch_size: 250 is not a multiple of 4 (micro_batch_size 4 x data-parallel size 1); "
        "use 248"
    ),
    "model: {path: a}\ndata: {train: t, global_batch_size: 2, micro_batch_size: 4}\nobjective: p\n": (
        "r.yaml:2: data.global_batch_size: 2 is not a multiple of 4 (micro_batch_size 4 x data-parallel size 1); use 4"
    ),
    SMALLEST + "parallel: {sequence_parallel: true}\n": (
        "r.yaml:4: parallel.sequence_parallel: true needs tensor_model_parallel_size of at least 2 (Megatron refuses "
        "it at 1); set it to false"
    ),
    SMALLEST + "parallel: {virtual_pipeline_model_parallel_size: 2}\n": (
        "r.yaml:4: parallel.virtual_pipeline_model_parallel_size: 2 needs pipeline_model_parallel_size of at least 2; "
        "raise that or set this to null"
    ),
    "model: {path: a}\ndata: {train: t, global_batch_size: 3}\nobjective: p\ntrainer: {devices: 2}\n"
    "parallel: {pipeline_model_parallel_size: 2, virtual_pipeline_model_parallel_size: 2}\n": (
        "r.yaml:5: parallel.virtual_pipeline_model_parallel_size: 2 needs the micro-batches of a step (3) in multiples "
        "of pipeline_model_parallel_size 2; change data.micro_batch_size or set this to null"
    ),
    SMALLEST + "trainer: {epochs: 1, max_steps: 5}\n": (
        "r.yaml:4: trainer.max_steps: 5 contradicts trainer.epochs 1; set one of them to null"
    ),
    SMALLEST + "optim: {min_lr: 1e-6, schedule: constant}\n": (
        "r.yaml:4: optim.min_lr: 1e-06 has no effect with optim.schedule constant; remove it"
    ),
    SMALLEST + "optim: {min_lr: 1e-3}\n": (
        "r.yaml:4: optim.min_lr: 0.001 is above optim.lr 5e-05, from which it decays; lower it"
    ),
    SMALLEST + "export: {dtype: fp32}\n": (
        "r.yaml:4: export.dtype: fp32 has no effect without export.at_end; set export.at_end: true"
    ),
    SMALLEST + "head: {skip_below: 1}\n": "r.yaml:4: head.skip_below: 1 is out of range; use a number in [0, 1)",
    SMALLEST + "head: {skip_rows: false, chunk_tokens: 64}\n": (
        "r.yaml:4: head.chunk_tokens: 64 has no effect, head.skip_rows is false; remove one of them"
    ),
    SMALLEST + "head: {skip_rows: false, skip_below: 0.1}\n": (
        "r.yaml:4: head.skip_below: 0.1 has no effect, head.skip_rows is false; remove one of them"
    ),
    SMALLEST + "peft: {dim: 8}\n": "r.yaml:4: peft.name: missing; give name: lora",
    SMALLEST + "peft: {name: lora, dim: 3}\nparallel: {tensor_model_parallel_size: 2}\ntrainer: {devices: 2}\n": (
        "r.yaml:4: peft.dim: 3 is not a multiple of tensor_model_parallel_size 2, which divides it; use 4"
    ),
    SMALLEST + "peft: {name: lora}\ntrainer: {recompute: full}\n": (
        "r.yaml:5: trainer.recompute: full would train nothing with peft: Megatron recomputes a layer only if its "
        "input needs a gradient, and a frozen embedding has none; use selective or none"
    ),
}
