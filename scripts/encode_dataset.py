r"""Write the codes of a dataset, which a transformer is then trained on in place of its images.

    python scripts/encode_dataset.py --base configs/class_transformer.yaml --out data/codes \
        model.params.first_stage_config=logs/<run of the VQGAN>
    python main.py --base configs/class_transformer.yaml -t True data.params.codes=data/codes \
        model.params.first_stage_config=logs/<run of the VQGAN>

All splits of the config are encoded, with their conditions. `--flips` and `--crops K` write several
copies of each training image, of which every epoch chooses one. An interrupted call goes on when it
is repeated; `torchrun --nproc_per_node 4 scripts/encode_dataset.py ...` shares the work.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from taming.command_line import (
    Parser,
    add_flags,
    add_trust_flag,
    add_weight_flags,
    flag,
    from_flags,
    parse,
)
from taming.data.codes import Manifest
from taming.devices import device_of_command, own_share
from taming.errors import command
from taming.limits import readable_size
from taming.training.encoding import EncodingOptions
from taming.training.to_encode import load_encoding


@dataclass(frozen=True, kw_only=True)
class Options:
    base: tuple[str, ...] = flag(
        MISSING, "a transformer's config files, or its run", "-b", metavar="CONFIG", nargs="+"
    )
    out: str = flag(MISSING, "folder for the codes", "-o", hidden=("--outdir",))
    device: str = flag("auto", "auto, cuda, cuda:1, mps or cpu")


def summary(folder: str, manifest: Manifest) -> str:
    """What a folder has, in a line."""
    splits = [
        f"{one.images:,} images of {split}" + (f" ({one.copies} copies)" if one.copies > 1 else "")
        for split, one in manifest.splits.items()
    ]
    size = sum(path.stat().st_size for path in Path(folder).glob("*.npy"))
    return (
        f"{folder} has the codes of {' and '.join(splits)}, {readable_size(size)}; to train a "
        f"transformer on them, add {shlex.quote(f'data.params.codes={folder}')}"
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add_flags(parser, Options)
    add_flags(parser, EncodingOptions)
    add_trust_flag(parser)
    add_weight_flags(parser)
    args, overrides = parse(parser, argv)
    own, options = from_flags(Options, args), from_flags(EncodingOptions, args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    encoding = load_encoding(own.base, overrides, options, Path(own.out))
    encoding.model.to(device_of_command(own.device))
    manifest = encoding.run()
    if manifest is not None and own_share()[0] == 0:
        print(summary(own.out, manifest))


if __name__ == "__main__":
    main()
