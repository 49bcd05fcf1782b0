"""Upload a run to the Hugging Face Hub, with a model card that holds its results.

    python scripts/push.py logs/<run> owner/name --license mit
    python scripts/push.py logs/<run> owner/name --dry_run FOLDER

Weights as safetensors, the config and the card are uploaded; `taming.load("hf:owner/name")` loads
them. A repository that is there already is updated. `--dry_run` writes what would be uploaded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from taming.checkpoint import HubName, Run, load_run, run_config
from taming.command_line import Extend, Parser, add_trust_flag, add_weight_flags
from taming.downloads import file_hash
from taming.errors import UserError, command
from taming.evaluation.checkpoints import OwnWeights
from taming.evaluation.model_card import Card, results_of
from taming.export.publishing import (
    CARD,
    own_paths,
    prepare,
    published_config,
    require_login,
    upload,
    write_repository,
)
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.requests import sampling_script
from taming.shipped import subcommand_of
from taming.weight_choice import weight_choice

BASE = "merged over the run's configs"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Upload a run to the Hugging Face Hub, with its results.")
    add_trust_flag(parser)
    add_weight_flags(parser, parts=False)
    parser.add_argument("source", metavar="RUN", help="the run: its folder or checkpoint")
    parser.add_argument("target", metavar="OWNER/NAME", help="the repository on the hub")
    parser.add_argument(
        "-b", "--base", nargs="+", action=Extend, default=[], metavar="YAML", help=BASE
    )
    parser.add_argument(
        "--license", type=str.lower, help="of the weights, as the hub calls it: mit, cc-by-4.0"
    )
    parser.add_argument(
        "--tags", nargs="+", action=Extend, default=[], help="further tags of the card"
    )
    parser.add_argument("--private", action="store_true", help="if the repository is made")
    parser.add_argument("--revision", help="the branch to upload to (default: main)")
    parser.add_argument(
        "--dry_run", type=Path, metavar="DIR", help="write the files there, and upload nothing"
    )
    return parser


def make_card(
    args: argparse.Namespace,
    name: HubName,
    run: Run,
    step: int,
    config: dict[str, object],
    *,
    weights: OwnWeights,
    subcommand: str,
) -> Card:
    results, others = results_of(run.folder, weights)
    for file in others:
        print(f"left out: {run.folder / file} is of another checkpoint, or of other --weights")
    if (earlier := run.folder / CARD).exists():  # of a folder that is a repository itself
        print(f"left out: what {earlier} says, which may be of other weights")
    return Card(
        name,
        config,
        run.folder.resolve().name,
        step,
        results,
        license=args.license,
        tags=args.tags,
        subcommand=subcommand,
    )


def repository_of(args: argparse.Namespace) -> HubName:
    """The name that is given, with the revision."""
    name = HubName.parse(args.target)
    if name.revision and args.revision:
        raise UserError("give the revision once: as @REVISION, or with --revision")
    return HubName.parse(f"{name.repository}@{args.revision}") if args.revision else name


def subcommand_for(model: nn.Module) -> str:
    """With which `taming` uses a model."""
    if not isinstance(model, Net2NetTransformer):
        return "reconstruct FOLDER"
    return subcommand_of(sampling_script(model))


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    name = repository_of(args)
    if args.dry_run is None:
        require_login(name)
    model, run, step = load_run(args.source, args.base)
    config = published_config(run_config(run, args.base, used=["model"]))
    if paths := own_paths(config):
        print(f"config.yaml names folders of this machine: {', '.join(paths)}")
    weights = OwnWeights(file_hash(run.checkpoint), weight_choice(), model, run.model)
    subcommand = subcommand_for(model)
    card = make_card(args, name, run, step, config, weights=weights, subcommand=subcommand)
    if args.dry_run is not None:
        write_repository(args.dry_run, model, config, card.text())
        print(f"what would be uploaded to {name} is in {args.dry_run}")
        return
    place = prepare(name, card.text(), private=args.private)
    with tempfile.TemporaryDirectory(prefix="push-") as folder:
        write_repository(Path(folder), model, config, card.text())
        upload(Path(folder), name)
    done = "updated, as it was there already" if place.existed else "made"
    print(f"{place.url} is {done}; load it with taming.load('{name}')")
    if place.existed and args.private:
        print("--private holds for new repositories; change this one's on its page")


if __name__ == "__main__":
    main()
