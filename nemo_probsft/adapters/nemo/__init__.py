"""NeMo 2: its model, trainer, data module and loss reduction around the shared step."""
