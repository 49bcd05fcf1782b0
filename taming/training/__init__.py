"""Training, behind main.py; these are the names that configs call `main.X`."""

from taming.config import get_obj_from_str, instantiate_from_config
from taming.training.arguments import get_parser
from taming.training.callbacks import ImageLogger, LearningRateMonitor, SetupCallback
from taming.training.data_module import DataModuleFromConfig, WrappedDataset
from taming.training.trainer_options import nondefault_trainer_args

__all__ = [
    "DataModuleFromConfig",
    "ImageLogger",
    "LearningRateMonitor",
    "SetupCallback",
    "WrappedDataset",
    "get_obj_from_str",
    "get_parser",
    "instantiate_from_config",
    "nondefault_trainer_args",
]
