"""Sample many images from a class-conditional or unconditional transformer.

    python scripts/sample_fast.py -r logs/<run> -n 100 --classes 0,1,2

They go to `<run>/samples/top_k_<k>_temp_<t>_top_p_<p>/<global step>/[<class>/]NNNNNN.png`. The same
command again samples only what is missing; `torchrun --nproc_per_node 4 scripts/sample_fast.py ...`
shares the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taming.checkpoint import model_hashes
from taming.command_line import add_flags, from_flags, parse
from taming.devices import choose_dtype, device_of_command
from taming.errors import command
from taming.sampling.arguments import RunArguments, make_parser, require_positive
from taming.sampling.folder import SampleFolder, file_hashes, fill_folder, make_record
from taming.sampling.load import load_transformer
from taming.sampling.plan import TOP_K, SamplingPlan
from taming.sampling.sizes import add_side_flags
from taming.words import there_are


def read_arguments(argv: Sequence[str] | None) -> tuple[RunArguments, SamplingPlan, int]:
    """The run, the plan and the batch size."""
    parser = make_parser("Sample many images of classes, or without a condition.")
    add_flags(parser, SamplingPlan, top_k=TOP_K)
    add_side_flags(parser)
    parser.add_argument("--batch_size", type=int, default=25, help="sampled at once (default 25)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile; for many batches of one size"
    )
    args, overrides = parse(parser, argv)
    require_positive(batch_size=args.batch_size)
    run = from_flags(RunArguments, args, overrides=tuple(overrides))
    device = device_of_command(run.device)
    plan = from_flags(
        SamplingPlan,
        args,
        base=run.base,
        overrides=run.overrides,
        device=device,
        dtype=choose_dtype(run.precision, device),
        compiled=args.compile,
    )
    return run, plan, args.batch_size


def folder_for(
    plan: SamplingPlan, root: Path, step: int, hashes: Mapping[str, str]
) -> SampleFolder:
    settings = plan.settings
    name = f"top_k_{settings.top_k_name}_temp_{settings.temperature:.2f}_top_p_{settings.top_p}"
    if settings.guided:
        name += f"_guidance_{settings.guidance}_{settings.guidance_schedule}"
    name += settings.name_of_steps()
    if plan.size:
        name += f"_size_{plan.size[0] or 'own'}x{plan.size[1] or 'own'}"
    record = make_record(plan.seed, step, plan.dtype, settings, hashes)
    if plan.classifier:
        name += f"_reject_{plan.reject_ratio}"
        record |= {"reject_ratio": plan.reject_ratio, "classifier": plan.classifier}
        record |= file_hashes(classifier=plan.classifier_file)
    if plan.pooled:
        name += "_best_{}_of_{}".format(*plan.group)
        record |= {"reject_pool": plan.reject_pool, "pool": list(plan.group)}
    return SampleFolder(root / "samples" / name / str(step), record)


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, plan, batch_size = read_arguments(argv)
    model, run, step = load_transformer(
        arguments.resume, plan.base, plan.device, plan.overrides, plan.dtype
    )
    job = plan.job(model, batch_size)
    root, hashes = Path(arguments.outdir or run.folder), model_hashes(model, run.model)
    folder = folder_for(plan, root, step, hashes)
    new = fill_folder(folder, job)
    total, (rank, processes) = len(job.labels) * plan.num_samples, job.share
    if processes > 1:
        print(f"process {rank} of {processes} made {new} of {total} samples in {folder.root}")
    else:
        print(f"{there_are(total, 'sample')} in {folder.root} ({new} of them new)")


if __name__ == "__main__":
    main()
