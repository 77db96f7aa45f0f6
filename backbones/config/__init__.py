"""Every config key this project adds, reading configs, and the check of a whole config before anything heavy starts."""

from .architectures import ARCHITECTURES, architecture, learns
from .checks import (
    check_config,
    check_device,
    check_output_dir,
    check_output_file,
    config_findings,
    from_libraries,
    idle_keys,
    training_findings,
)
from .keys import KEYS, READING, add_backbones_config, add_vovnet_config, all_keys, defaults, flat, get, plain_norms, put
from .merging import (
    IMAGES,
    KINDS,
    add_data_arguments,
    apply_data_arguments,
    bases,
    first_difference,
    make_files_absolute,
    merge_file,
    merge_overrides,
)  # fmt: skip
from .writing import written

__all__ = [
    "ARCHITECTURES",
    "IMAGES",
    "KEYS",
    "KINDS",
    "READING",
    "add_backbones_config",
    "add_data_arguments",
    "add_vovnet_config",
    "all_keys",
    "apply_data_arguments",
    "architecture",
    "bases",
    "check_config",
    "check_device",
    "check_output_dir",
    "check_output_file",
    "config_findings",
    "defaults",
    "first_difference",
    "flat",
    "from_libraries",
    "get",
    "idle_keys",
    "learns",
    "make_files_absolute",
    "merge_file",
    "merge_overrides",
    "plain_norms",
    "put",
    "training_findings",
    "written",
]
