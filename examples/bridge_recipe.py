"""f(p) in a Megatron-Bridge recipe of your own:

    torchrun --nproc-per-node=1 examples/bridge_recipe.py objective=GeneralFamily-10 \\
        checkpoint.pretrained_checkpoint=DIR dataset.dataset_root=DIR

The arguments override fields of the recipe, as Bridge's own scripts take them; `objective` is the one that is ours.
"""

import sys

import torch

from nemo_probsft.adapters.bridge import cpu, with_objective  # before Bridge, which it makes importable without CUDA

from megatron.bridge.recipes.llama import llama32_1b_sft_config  # isort: skip
from megatron.bridge.training.config import GPTSFTDatasetConfig
from megatron.bridge.training.finetune import finetune

if __name__ == "__main__":  # Megatron's checkpoint writer imports this file once more, in a process of its own
    cfg = llama32_1b_sft_config()
    cfg.model.calculate_per_token_loss = True  # a sum and a count leave the loss, and are divided once
    cfg.model.cross_entropy_loss_fusion = False  # ops.target_logprob takes its place
    cfg.dataset = GPTSFTDatasetConfig(seq_length=cfg.model.seq_length, dataset_root="data")  # its own packs rows
    step = with_objective(cfg, overrides=sys.argv[1:])  # refuses what would train something else
    if not torch.cuda.is_available():
        cpu.settle(cfg)
    finetune(cfg, step, callbacks=[step])
