"""Train: `python main.py --base configs/x.yaml -t True --gpus 0,` (`--help` says what else).

The work is done in `taming.training`; the names that configs and notebooks expect here are
imported from there.
"""

from taming.imports import many_imports

with many_imports(of_command=__name__ == "__main__"):
    from taming.training import (
        DataModuleFromConfig,
        ImageLogger,
        LearningRateMonitor,
        SetupCallback,
        WrappedDataset,
        get_obj_from_str,
        get_parser,
        instantiate_from_config,
        nondefault_trainer_args,
    )
    from taming.training.cli import main

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

if __name__ == "__main__":
    main()
