"""The continuum on a real pretrained model: objectives x tasks x learning rates x seeds."""
