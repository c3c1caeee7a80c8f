"""The recipe: its schema, how it is read, and what is refused before anything else is looked at."""

from nemo_probsft.config.loading import dump, load
from nemo_probsft.config.recipe import (
    MAX_INT32,
    DataConfig,
    HeadConfig,
    KeepConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ParallelConfig,
    PeftConfig,
    Recipe,
    ResolvedObjective,
    ScheduleConfig,
    SourceConfig,
    ValidateConfig,
    WandbConfig,
)

__all__ = [
    "MAX_INT32",
    "DataConfig",
    "HeadConfig",
    "KeepConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ParallelConfig",
    "PeftConfig",
    "Recipe",
    "ResolvedObjective",
    "ScheduleConfig",
    "SourceConfig",
    "ValidateConfig",
    "WandbConfig",
    "dump",
    "load",
]
