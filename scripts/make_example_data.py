"""Write small datasets in every format that configs/ uses: rendered, without a download."""

from __future__ import annotations

import argparse
import os

from taming.data.examples import write_all
from taming.errors import command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", default="example_data", help="folder to write into")
    parser.add_argument("--train", type=int, default=8, help="training images per dataset")
    parser.add_argument("--validation", type=int, default=4, help="validation images per dataset")
    args = parser.parse_args()
    count = write_all(args.output, max(5, args.train), max(1, args.validation))
    here = os.path.relpath(os.getcwd(), args.output)
    print(f"{args.output}: {count} files; to train on them, for example:")
    print(f"  cd {args.output} && XDG_CACHE_HOME=$PWD/cache python {here}/main.py \\")
    print(f"    --base {here}/configs/faceshq_vqgan.yaml -t True")


if __name__ == "__main__":
    main()
