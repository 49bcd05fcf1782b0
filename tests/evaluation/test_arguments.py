from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taming.command_line import from_flags, parse
from taming.errors import UserError
from taming.evaluation.arguments import (
    EvaluationArguments,
    ExtractorArguments,
    RunSetArguments,
    add_metric_flags,
    add_set_flags,
    extractor_dtype,
    extractor_name,
    fidelity_settings,
    make_parser,
    open_sets,
    parse_sets,
    sampling_plan,
)
from taming.evaluation.cache import SAVE_EVERY
from taming.evaluation.evaluator_arguments import FidelityExtractorArguments
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks.fidelity import ImageSet
from taming.sampling import SampleSettings
from tests.kit.extractor import TinyExtractor, register_tiny
from tests.kit.images import image_folder, write_images
from tests.kit.runs import tiny_run
from tests.kit.training import small_vqgan, write_config
from tests.support import ROOT

CPU = torch.device("cpu")
CLASS = "tests.kit.extractor:TinyExtractor"


def extractors(*flags: str, keep_features: bool = False) -> tuple[Extractor, Extractor]:
    parser = make_parser("For tests.", FidelityExtractorArguments)
    add_metric_flags(parser)
    args = parser.parse_args(flags)
    own = from_flags(FidelityExtractorArguments, args)
    ((first, second),) = own.extractors(
        own.settings(args, keep_features), CPU, "fp32", compiled=False
    )
    return first, second


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("fp32", "cuda", torch.float32),
        ("bf16", "cuda", torch.float16),
        ("bf16", "mps", torch.float16),
        ("bf16", "cpu", torch.float32),
        ("auto", "cpu", torch.float32),
    ],
)
def test_what_an_extractor_computes_in(precision: str, device: str, expected: torch.dtype) -> None:
    assert extractor_dtype(precision, torch.device(device)) == expected


def test_an_unknown_precision() -> None:
    with pytest.raises(UserError, match="--precision takes fp32, bf16 or auto, not 'fp8'"):
        extractor_dtype("fp8", CPU)


@pytest.fixture
def other(tmp_path: Path) -> str:
    state = TinyExtractor("tiny", ["16"]).state_dict()
    torch.save({name: -tensor for name, tensor in state.items()}, tmp_path / "other.pth")
    return str(tmp_path / "other.pth")


def test_one_extractor_for_all_metrics_where_it_is_named() -> None:
    first, second = extractors("--extractor", CLASS, "--metrics", "kid,isc,prc")
    assert first is second
    assert (first.name, first.layers) == (CLASS, ("16", "logits"))
    first, _ = extractors("--extractor", CLASS, "--layer", "fid=logits")
    assert first.layers == ("logits",)


def test_another_for_precision_and_recall(other: str) -> None:
    name = register_tiny()
    apart = ("--extractor", CLASS, "--prc_extractor", name, "--prc_weights", other)
    first, second = extractors(*apart, "--metrics", "isc,prc")
    assert (first.name, first.layers) == (CLASS, ("logits",))
    assert (second.name, second.layers) == (name, ("16",))
    assert first.weights_hash != second.weights_hash
    first, second = extractors(*apart, "--metrics", "prc")  # the other is not needed
    assert first is second
    assert first.name == name
    first, second = extractors(*apart, "--metrics", "prc", keep_features=True)
    assert (first.name, second.name) == (CLASS, name)
    first, second = extractors(*apart, "--metrics", "fid")
    assert first is second
    assert first.name == CLASS


def test_weights_of_one_name_apart(other: str) -> None:
    flags = ("--extractor", CLASS, "--prc_weights", other, "--metrics", "fid,prc")
    first, second = extractors(*flags)
    assert first.weights_hash != second.weights_hash
    _, second = extractors("--extractor", CLASS, "--weights", other, "--metrics", "fid,prc")
    assert second.weights_hash != first.weights_hash
    first, second = extractors(*flags, "--weights", other)  # and once, if they are the same
    assert first is second


def parsed(*argv: str) -> tuple[Namespace, list[str], list[str]]:
    parser = make_parser("For tests.", EvaluationArguments)
    add_set_flags(parser)
    return parse_sets(parser, argv, most=2)


def test_sets_flags_and_overrides_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "epoch=000012.ckpt").write_text("a path, no override")
    run = str(tmp_path / "epoch=000012.ckpt")
    _, sets, overrides = parsed(run, "-n", "3", "model.params.pkeep=1.0", "B", "--split", "test")
    assert sets == [run, "B"]
    assert overrides == ["model.params.pkeep=1.0"]
    with pytest.raises(UserError, match="unknown argument C"):
        parsed("A", "B", "C")


def test_a_plan_of_samples() -> None:
    flags = ["-n", "3", "-k", "7", "-p", "0.9", "--classes", "4,1,", "--seed", "2", "--width", "8"]
    args, _, overrides = parsed("A", *flags, "model.x=1", "-b", "more.yaml")
    plan = sampling_plan(args, overrides, CPU)
    assert plan.settings == SampleSettings(1.0, 7, 0.9)
    assert (plan.num_samples, plan.classes, plan.seed) == (3, (4, 1), 2)
    assert plan.dtype == torch.float32
    assert (plan.size, plan.overrides, plan.base) == ((None, 8), ("model.x=1",), ("more.yaml",))
    args, _, _ = parsed("A", "--sampler_precision", "bf16", "--size", "8,12", "--compile")
    plan = sampling_plan(args, (), CPU)
    assert (plan.dtype, plan.size, plan.compiled) == (torch.bfloat16, (8, 12), True)
    assert (plan.num_samples, plan.settings.top_k) == (50_000, 250)


def test_what_evaluations_keep_and_where() -> None:
    args, _, _ = parsed("A")
    common = from_flags(EvaluationArguments, args)
    assert from_flags(RunSetArguments, args).batch_size == 50
    runner = common.cache.runner(9)
    assert (runner.batch_size, runner.cache.enabled, runner.save_every) == (9, True, SAVE_EVERY)
    args, _, _ = parsed("A", "--no_cache", "--save_every", "7.5", "-o", "elsewhere")
    common = from_flags(EvaluationArguments, args)
    runner = common.cache.runner(9)
    assert (runner.cache.enabled, runner.save_every) == (False, 7.5)
    statistics = Statistics(np.zeros(1), np.ones((1, 1)))
    assert common.folder_for(statistics) == Path("elsewhere")
    assert EvaluationArguments(cache=common.cache).folder_for(statistics) == Path("evaluation")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-b", "nowhere.yaml"], "--base nowhere.yaml is merged over a run's configs, and none is"),
        (["--base", "model.x=1"], "model.x=1 overrides a config, and none is given"),
        (["data.x=1"], "data.x=1 overrides a config, and none is given"),
    ],
)
def test_configs_of_nothing_are_refused(tmp_path: Path, more: list[str], message: str) -> None:
    args, sets, overrides = parsed(str(image_folder(tmp_path / "images", 1)), *more)
    with pytest.raises(UserError, match=message):
        open_sets(sets, args, overrides, CPU)


def test_the_name_of_a_published_model_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "cin_transformer"
    args, sets, overrides = parsed(name, "-n", "1")
    with pytest.raises(UserError, match=f"at {name}; fetch it with"):
        open_sets(sets, args, overrides, CPU)
    run = tiny_run(Path("logs/2021-04-03T19-39-50_cin_transformer"))
    (found,) = open_sets(sets, args, overrides, CPU)
    assert isinstance(found, RunSource) and found.run.folder == run


def test_whatever_other_scripts_take_for_a_run_is_one(tmp_path: Path) -> None:
    """Downloads and hubs' folders too; but weights among images are no run."""
    run = tiny_run(tmp_path / "run")
    whole = torch.load(run / "checkpoints" / "last.ckpt")["state_dict"]
    state = {name: tensor.clone() for name, tensor in whole.items()}
    (config,) = (run / "configs").iterdir()

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(config, tmp_path / name / "config.yaml")
        return tmp_path / name

    def opened(path: Path) -> ImageSet:
        args, sets, overrides = parsed(str(path), "-n", "1")
        return open_sets(sets, args, overrides, CPU)[0]

    hub, cached, loose = folder("hub"), folder("cache/snapshots/1"), folder("loose")
    for place in (hub, cached):
        save_file(state, place / "model.safetensors")
    torch.save(state, loose / "any name.pt")
    for place in (run, hub, tmp_path / "cache", loose):
        assert isinstance(found := opened(place), RunSource) and len(found) == 5
    for place in (loose, hub):
        write_images(place / "0", 2)
    assert len(opened(loose)) == 2 and isinstance(opened(loose), FolderSource)
    assert isinstance(opened(hub), RunSource)


def test_networks_for_manifolds_are_a_flag_where_there_are_such_metrics() -> None:
    parser = make_parser("For tests.", ExtractorArguments)
    with pytest.raises(UserError, match="unknown argument --prc_extractor"):
        parse(parser, ["--prc_extractor", "-1"])


def test_flags_reach_the_sets(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", 1)
    image_folder(tmp_path / "images" / "more", 2)
    folder, config = str(tmp_path / "images"), write_config(tmp_path, small_vqgan())

    def opened(*argv: str) -> Any:
        args, sets, overrides = parsed(*argv)
        (found,) = open_sets(sets, args, overrides, CPU)
        return found

    assert (len(opened(folder)), len(opened(folder, "--deep"))) == (1, 3)
    assert opened(folder, "--workers", "0").workers == 0
    assert (len(opened(config)), len(opened(config, "--split", "train"))) == (4, 12)
    assert len(opened(config, "data.params.validation.params.length=3")) == 3
    assert opened(config, "--image_key", "picture").key == "picture"
    file = Statistics(np.zeros(1), np.ones((1, 1))).save(tmp_path / "a.npz")
    assert opened(str(file)).protocol["file"] == str(file)


def test_a_class_that_changed_is_registered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("First", "Second"):
        module = ModuleType("own_extractor")
        vars(module)["Own"] = type(name, (TinyExtractor,), {})
        monkeypatch.setitem(sys.modules, "own_extractor", module)
        assert extractor_name("own_extractor:Own") == "own_extractor:Own"
        assert type(Extractor("own_extractor:Own").module).__name__ == name


def test_metrics_of_flags() -> None:
    parser = make_parser("For tests.")
    add_metric_flags(parser)
    args = parser.parse_args(["--metrics", "kid, fid,", "--kid_subset_size", "7", "--per_class"])
    settings = fidelity_settings(args, {"fid": "16"})
    assert (settings.metrics, settings.per_class, settings.layers) == (
        ("kid", "fid"),
        True,
        {"fid": "16"},
    )
    assert settings.of_metrics == metric_settings(kid_subset_size=7)


def test_a_config_beside_a_run_needs_no_lists_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(write_images(tmp_path, 1, 16, 16)))
    params = {"test_images_list_file": str(tmp_path / "list.txt"), "exif": "ignore"}
    dataset = {"target": "taming.data.custom.CustomTest", "params": params}
    run = tiny_run(tmp_path / "run", validation=dataset)
    parser = make_parser("For tests.", EvaluationArguments)
    add_set_flags(parser)
    sets = [str(run), str(ROOT / "configs" / "small" / "transformer.yaml")]
    args, names, _ = parse_sets(parser, sets, most=2)
    _, images = open_sets(names, args, (), CPU)
    assert isinstance(images, DatasetSource) and images.section["params"] == params | {"size": 8}
    with pytest.raises(UserError, match="test_images_list_file"):
        open_sets(names[1:], args, (), CPU)
