"""Sample an image for every condition of a run's data, beside the original and its reconstruction.

    python scripts/make_samples.py -r logs/<run> --outdir samples

They go to `<outdir>/<global step>_<top_k>_<temperature>/{originals,reconstructions,samples}/`, and
what the conditions look like to `conditioning/`. Images can have any size; for other sizes than the
training's there is a sliding window. The same command again samples what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from taming.checkpoint import model_hashes
from taming.command_line import flag
from taming.errors import command, end_with_damaged, interruptible
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling import Request, request_for_condition
from taming.sampling.arguments import (
    DataArguments,
    SampleArguments,
    make_parser,
    read_arguments,
    require_positive,
)
from taming.sampling.bars import ImageBar
from taming.sampling.engine import check_settings
from taming.sampling.filling import filling
from taming.sampling.folder import ADVICE, SampleFolder, make_record, save_png
from taming.sampling.inputs import SampleInputs, inputs_of_item
from taming.sampling.items import sample_items, undamaged


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    data: DataArguments
    sampling: SampleArguments
    num_samples: int | None = flag(None, "the first n items (default: all)", "-n")

    def __post_init__(self) -> None:
        require_positive(num_samples=self.num_samples)


@torch.no_grad()
def write_inputs(model: Net2NetTransformer, inputs: SampleInputs, root: Path) -> Request:
    """Write the original, its reconstruction and the condition; the request for the sample."""
    assert inputs.x is not None
    x, name = inputs.x.to(model.device), f"{inputs.number:06}.png"
    quant, indices = model.encode_to_z(x)
    save_png(model.as_pictures(x)[0], root / "originals" / name)
    save_png(model.decode_to_picture(indices, quant.shape)[0], root / "reconstructions" / name)
    if inputs.c is not None:
        c, size = inputs.c.to(model.device), (x.shape[2], x.shape[3])
        pictures = model.condition_images(c, model.encode_to_c(c)[0], size)
        if "conditioning" in pictures:
            save_png(pictures["conditioning"][0], root / "conditioning" / name)
    return request_for_condition(model, inputs.c, inputs.number, inputs.shape)


@command
@interruptible(ADVICE)
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(
        "Sample an image for every condition of a run's data.", Arguments, top_k=100
    )
    arguments, own = read_arguments(parser, Arguments, argv)
    sampling, settings = own.sampling, own.sampling.settings
    model, run, step, dtype = own.data.load(arguments)
    dataset = own.data.open(run, arguments)
    name = f"{step}_{settings.top_k_name}_{settings.temperature}"
    root = Path(arguments.outdir or run.folder / "samples_of_data") / name
    hashes = model_hashes(model, run.model)
    record = make_record(sampling.seed, step, dtype, settings, hashes)
    folder = SampleFolder(root / "samples", record)
    most = min(own.num_samples or len(dataset), len(dataset))
    left_out, hashes_of, new = dict[int, str](), dict[int, str](), 0

    def items(numbers: Iterable[int]) -> Iterator[SampleInputs]:
        load = partial(inputs_of_item, model, dataset)
        return (inputs for _, inputs in undamaged(load, numbers, left_out))

    def request_of(inputs: SampleInputs) -> Request:
        hashes_of[inputs.number] = inputs.condition_hash
        return write_inputs(model, inputs, root)

    for inputs in islice(items(range(most)), 1):  # before anything is written or a line begun
        check_settings(model, settings, inputs.shape)
    for inputs in items(sorted(folder.finished(None) & set(range(most)))):
        folder.require(None, inputs.number, condition_hash=inputs.condition_hash)
    with (
        filling(folder, dtype, sampling.batch_size, most) as going,
        ImageBar(len(going.missing)) as bar,
    ):
        samples = sample_items(
            model,
            items(going.missing),
            request_of,
            settings,
            batch_size=going.batch_size,
            seed=sampling.seed,
            on_step=bar,
            filled=going.filled,
        )
        for sample in samples:
            going.save(sample, condition_hash=hashes_of.pop(sample.number))
            bar.image()
            new += 1
    print(f"originals, reconstructions and samples are in {root} ({new} of them new)")
    end_with_damaged([left_out[number] for number in sorted(left_out)])


if __name__ == "__main__":
    main()
