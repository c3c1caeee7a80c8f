"""f(p) in a Megatron-Bridge recipe of your own:

    torchrun --nproc-per-node=1 examples/bridge_recipe.py GeneralFamily-10 checkpoint.pretrained_checkpoint=DIR \\
        dataset.dataset_root=DIR

The first argument is the objective; the others override fields of the recipe, as Bridge's own scripts take them.
"""

import sys

import torch

from nemo_probsft.adapters.bridge import ObjectiveStep, cpu  # before Bridge, which it makes importable without CUDA

from megatron.bridge.recipes.llama import llama32_1b_sft_config  # isort: skip
from megatron.bridge.training.finetune import finetune
from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides

objective, *overrides = sys.argv[1:]
cfg = llama32_1b_sft_config()
cfg.model.calculate_per_token_loss = True  # a sum and a count leave the loss, and are divided once
cfg.model.cross_entropy_loss_fusion = False  # ops.target_logprob takes its place
cfg.dataset.enable_offline_packing = False
cfg.dataset.hf_dataset = None  # SQuAD, unless you name your own dataset_root
cfg = process_config_with_overrides(cfg, cli_overrides=overrides)
if not torch.cuda.is_available():
    cpu.settle(cfg)
step = ObjectiveStep(cfg, objective)  # refuses what would train something else
finetune(cfg, step, callbacks=[step])
