"""Flags that the evaluation scripts share."""

from __future__ import annotations

import argparse


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with --device --precision --compile --batch_size --workers --outdir --no_cache."""
    raise NotImplementedError


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """--extractor (name or module:Class), --weights, --layer METRIC=NAME"""
    raise NotImplementedError


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """--num_samples --classes --seed -k -t -p --guidance ... (used where the images are a run's)."""
    raise NotImplementedError
