"""The continuum measured: tasks x objectives x seeds on the model of the demo, with the real engines."""
