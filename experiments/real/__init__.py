"""The continuum on a real pretrained model."""
