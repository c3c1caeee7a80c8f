"""What every engine on Megatron-Core shares: the hook on the model, the head, the step, settings, CPU patches."""
