"""Fetch published models into logs/, ready for the sampling scripts.

    python scripts/download_models.py --list
    python scripts/download_models.py vqgan_imagenet_f16_16384 cin_transformer

An interrupted download goes on where it stopped. Each model's downloads.json keeps its hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

from taming.command_line import Parser
from taming.config import did_you_mean
from taming.errors import UserError, command
from taming.pretrained import download_model, lacks_config
from taming.published_models import Published, published_models

NO_CONFIG = (
    "but it came without a config, and its sizes are not known here: name a YAML with --base when "
    "you use it. That of a similar model is a start; loading tells which values differ, except "
    "n_head, which weights do not show."
)


def print_table(models: dict[str, Published]) -> None:
    width = max(map(len, models))
    for model in models.values():
        fid = model.fid if "FID" in model.fid else f"FID {model.fid}"
        print(f"{model.name:{width}}  {model.what}; {fid}; licence {model.licence}")
        print(f"{'':{width}}  -> {model.folder} from {' '.join(model.addresses)}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description="Fetch published models into logs/.")
    parser.add_argument("names", nargs="*", help="models to fetch, or 'all'")
    parser.add_argument("--list", action="store_true", help="show the models and stop")
    parser.add_argument("--root", default=".", help="folder in which logs/ lies (default: here)")
    parser.add_argument(
        "--check", action="store_true", help="also compare files that are there to their hashes"
    )
    args = parser.parse_args(argv)
    models = published_models()
    if args.list:
        return print_table(models)
    names = list(models) if args.names == ["all"] else args.names
    if not names:
        raise UserError("name the models to fetch; --list shows them")
    for name in names:
        if name not in models:
            several = [model for model in models if model.startswith(f"{name}_")]
            hint = f"; there are {', '.join(several)}" if several else did_you_mean(name, models)
            raise UserError(f"there is no published model '{name}'{hint}")
    for name in names:
        folder = download_model(models[name], args.root, check=args.check)
        print(f"{name} is in {folder}{', ' + NO_CONFIG if lacks_config(folder) else ''}")


if __name__ == "__main__":
    main()
