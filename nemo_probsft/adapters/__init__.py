"""Adapters move tensors between the objectives and a trainer; importing this package imports no trainer."""
