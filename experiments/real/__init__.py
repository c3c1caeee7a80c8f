"""The continuum on a real pretrained model; README.md of experiments says how to run it."""
