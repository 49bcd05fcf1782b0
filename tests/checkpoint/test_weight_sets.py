"""Weights as others save them: prefixes, containers, averages, parts, shards and dtypes."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taming.checkpoint import load_file, read_checkpoint, read_content
from taming.checkpoint.names import renamed
from taming.checkpoint.weight_sets import choose, say
from taming.errors import UserError
from taming.weight_choice import WeightChoice, choosing_weights, weight_choice

State = dict[str, Tensor]


class Tiny(nn.Module):
    """The parts of a first stage, with a buffer, which averages leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.decoder = nn.Conv2d(2, 3, 1)
        self.quantize = nn.Embedding(4, 2)


def state_of(seed: int) -> State:
    torch.manual_seed(seed)
    return {
        name: torch.randn(t.shape) if t.is_floating_point() else torch.tensor(seed)
        for name, t in Tiny().state_dict().items()
    }


RAW, AVERAGE = state_of(1), state_of(2)
PARAMETERS = list(Tiny().named_parameters())


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    say.cache_clear()


def prefixed(state: State, *parts: str) -> State:
    return {"".join(f"{part}." for part in parts) + name: t for name, t in state.items()}


def save(content: Any, folder: Path, kind: str = "zip") -> Path:
    path = folder / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file({name: t.contiguous() for name, t in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def loads_as(path: Path, expected: State, **choice: Any) -> None:
    model = Tiny()
    with choosing_weights(choice.get("kind"), choice.get("parts", ())):
        load_file(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


PREFIXES = ["module", "_orig_mod", "model", "first_stage_model", "_forward_module"]
NESTED = [(one,) for one in PREFIXES] + list(itertools.permutations(PREFIXES, 2))
NESTED += [("module", "_orig_mod", "first_stage_model"), ("vqgan",), ("net", "module", "vae")]
NESTED += [tuple(PREFIXES)]


@pytest.mark.parametrize("prefix", NESTED, ids=".".join)
def test_prefixes_of_all_names_are_left_out_and_said(
    tmp_path: Path, prefix: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    path = save(prefixed(RAW, *prefix), tmp_path, "safetensors")
    loads_as(path, RAW)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: without the prefix '{'.'.join(prefix)}.'"
    ]


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("prefix", [(), ("module", "model")], ids=str)
@pytest.mark.parametrize(
    "place",
    ["state_dict", "model", "module", "params", "model_state_dict", "ema", "my_own", "a.b.c.d"],
)
def test_containers(tmp_path: Path, place: str, prefix: tuple[str, ...], kind: str) -> None:
    content: Any = prefixed(RAW, *prefix)
    for key in reversed(place.split(".")):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": RAW}}}}
    loads_as(save(content, tmp_path, kind), RAW)


def test_names_within_names_are_left_out(tmp_path: Path) -> None:
    wrappers = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module")
    for wrapper in (*wrappers, "_checkpoint_wrapped_module"):
        inner = {name.replace("encoder.", f"encoder.{wrapper}."): t for name, t in RAW.items()}
        loads_as(save(inner, tmp_path), RAW)


def test_prefixes_and_wrappers_that_tell_weights_apart_stay() -> None:
    one = torch.ones(2, 2)
    state = dict.fromkeys(["module.a.w", "module.b.w", "loss.w", "model_ema.w"], one)
    assert renamed(state, None).tensors.keys() == {"a.w", "b.w", "loss.w", "model_ema.w"}
    state = dict.fromkeys(["a.module.w", "a.w"], one)
    assert renamed(state, ["a.w"]).tensors.keys() == state.keys()
    state = dict.fromkeys(["a.module.w", "b.w"], one)  # of a model with a part of that name
    assert renamed(state, ["a.module.w", "b.w"]).tensors.keys() == state.keys()


def test_of_several_sets_the_usual_one_is_taken() -> None:
    for first, second in itertools.combinations(("state_dict", "model", "module", "net", "g"), 2):
        content = {second: RAW, "zzz": {**RAW, "a.more": RAW["decoder.bias"]}, first: AVERAGE}
        assert choose(content, "x").tensors == AVERAGE
    assert choose({"model": RAW, "schema": AVERAGE}, "x").tensors == RAW  # no "ema"


def test_the_set_that_has_most_of_the_model_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"head.0.weight": torch.ones(2, 2)}
    loads_as(save({"model": other, "mine": RAW}, tmp_path), RAW)
    caplog.clear()
    averages = {"model_ema.diffusion_modelw": torch.ones(2, 2), "model_ema.decay": torch.ones(())}
    beside = {"diffusion_model.w": torch.ones(2, 2), **averages}
    path = save({"state_dict": {**prefixed(RAW, "first_stage_model"), **beside}}, tmp_path)
    choosing = choose(read_content(path), path, {**prefixed(RAW, "first_stage_model")})
    assert not any("average" in note for note in choosing.notes)


def test_a_prefix_of_some_names_is_not_guessed_at(tmp_path: Path) -> None:
    some = {f"module.{n}" if n.startswith("encoder") else n: t for n, t in RAW.items()}
    with pytest.raises(UserError, match=r"encoder: 7 keys missing.*module: 7 keys unknown"):
        loads_as(save(some, tmp_path), RAW)


def test_what_has_no_prefix_is_loaded_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"epoch": 1, "optimizer_states": [{"state": {0: {"exp_avg": RAW["decoder.bias"]}}}]}
    loads_as(save({"state_dict": RAW, **extra}, tmp_path), RAW)
    loads_as(save(RAW, tmp_path), RAW)
    assert not caplog.records


def test_the_parts_of_a_model_as_files_of_its_modules(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"step": 7}
    for name, tensor in RAW.items():
        head, _, rest = name.partition(".")
        parts.setdefault(head, {})[rest] = tensor
    loads_as(save(parts, tmp_path), RAW)


# ---------------------------------------------------------------------- averages


def squeezed(state: State) -> State:
    """As latent diffusion's LitEma names the parameters, which it keeps alone."""
    kept = {n: t for n, t in state.items() if "running" not in n and "num_batches" not in n}
    named = {f"model_ema.{n.replace('.', '')}": t for n, t in kept.items()}
    return {**named, "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}


def swa(state: State) -> State:
    return {**prefixed(state, "module"), "n_averaged": torch.tensor(5)}


# Content with both sets, whether the average has buffers too, and where each is.
BOTH: dict[str, tuple[Callable[[], Any], bool, str, str]] = {
    "beside": (lambda: {"model": RAW, "ema": AVERAGE}, True, "model", "ema"),
    "timm": (lambda: {"state_dict": RAW, "state_dict_ema": AVERAGE}, True, "state_dict", "_ema"),
    "basicsr": (lambda: {"params": RAW, "params_ema": AVERAGE}, True, "params", "params_ema"),
    "gan": (
        lambda: {"g": RAW, "d": {"main.0.weight": torch.ones(2)}, "g_ema": AVERAGE},
        True,
        "g",
        "g_ema",
    ),
    "litema": (lambda: {"state_dict": {**RAW, **squeezed(AVERAGE)}}, False, "state_dict", "model"),
    "lightning": (
        lambda: {"state_dict": AVERAGE, "current_model_state": RAW, "averaging_state": {"n": 1}},
        True,
        "current_model_state",
        "state_dict",
    ),
    "litema apart": (
        lambda: {
            "state_dict": RAW,
            "ema": {n.removeprefix("model_ema."): t for n, t in squeezed(AVERAGE).items()},
        },
        False,
        "state_dict",
        "ema",
    ),
    "swa": (lambda: {"model": RAW, "swa_model": swa(AVERAGE)}, True, "model", "swa_model"),
    "nested": (
        lambda: {"model": prefixed(RAW, "module"), "ema": {"decay": 0.9, "shadow": AVERAGE}},
        True,
        "model",
        "ema.shadow",
    ),
    "ema-pytorch": (
        lambda: {
            "model": RAW,
            "ema": {
                **prefixed(RAW, "online_model"),
                **prefixed(AVERAGE, "ema_model"),
                "initted": torch.tensor(True),
                "step": torch.tensor(5),
            },
        },
        True,
        "model",
        "ema.ema_model",
    ),
    "ema-pytorch alone": (
        lambda: {"ema": {**prefixed(RAW, "online_model"), **prefixed(AVERAGE, "ema_model")}},
        True,
        "ema",
        "ema.ema_model",
    ),
    "dino": (
        lambda: {"student": prefixed(RAW, "module"), "teacher": AVERAGE, "epoch": 3},
        True,
        "student",
        "teacher",
    ),
    "byol": (
        lambda: {
            "state_dict": {
                **prefixed(RAW, "online_network"),
                **prefixed(AVERAGE, "target_network"),
            }
        },
        True,
        "state_dict",
        "state_dict.target_network",
    ),
    "k-diffusion": (
        lambda: {"model": RAW, "model_ema": AVERAGE, "ema_sched": {"last": torch.ones(3)}},
        True,
        "model",
        "model_ema",
    ),
    "timm on several devices": (
        lambda: {"state_dict": RAW, "state_dict_ema": prefixed(AVERAGE, "module")},
        True,
        "state_dict",
        "state_dict_ema",
    ),
    "a callback": (
        lambda: {"state_dict": RAW, "callbacks": {"EMA": {"ema_state_dict": AVERAGE}}},
        True,
        "state_dict",
        "callbacks.EMA.ema_state_dict",
    ),
    "in order": (
        lambda: {
            "state_dict": RAW,
            "callbacks": {"EMA": {"ema_weights": [AVERAGE[n] for n, _ in PARAMETERS]}},
        },
        False,
        "state_dict",
        "callbacks.EMA.ema_weights",
    ),
    "within": (
        lambda: {"model": RAW, "ema": {"decay": 0.9, "model": AVERAGE}},
        True,
        "model",
        "ema.model",
    ),
    "lucidrains": (
        lambda: {**prefixed(RAW, "online_model"), **prefixed(AVERAGE, "ema_model")},
        True,
        "the whole file",
        "ema_model",
    ),
}


@pytest.mark.parametrize("name", BOTH)
def test_averages_are_preferred_named_and_left_on_demand(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, whole, raw, average = BOTH[name]
    path = save(content(), tmp_path)
    buffers = {n: t for n, t in RAW.items() if "running" in n or "num_batches" in n}
    loads_as(path, AVERAGE if whole else {**AVERAGE, **buffers})
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"the moving average '{'state_dict.' if name == 'litema' else ''}" in line
    assert average in line and f"(--weights raw takes '{raw}')" in line
    loads_as(path, RAW, kind="raw")
    loads_as(path, AVERAGE if whole else {**AVERAGE, **buffers}, kind="ema")


def test_an_average_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    average = {**AVERAGE, "decoder.bias": torch.ones(7)}
    loads_as(
        save({"model": RAW, "ema": average}, tmp_path),
        AVERAGE | {"decoder.bias": RAW["decoder.bias"]},
    )


def test_a_teacher_of_another_size_is_no_average(tmp_path: Path) -> None:
    other = {name: torch.ones(*tensor.shape, 2) for name, tensor in AVERAGE.items()}
    loads_as(save({"student": RAW, "teacher": other}, tmp_path), RAW)
    assert (
        not choose({"teacher": RAW, "target": {"a.b": torch.ones(2)}}, "x").notes[0].count("aver")
    )


@pytest.mark.parametrize("name", ["ema_encoder", "averaged", "model_ema_x", "model_ema", "teacher"])
def test_a_part_of_the_model_is_no_average(tmp_path: Path, name: str) -> None:
    class Own(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))

    state = {n: torch.randn_like(t.float()) for n, t in Own().state_dict().items()}
    parts: dict[str, Any] = {}
    for full, tensor in state.items():
        parts.setdefault(full.partition(".")[0], {})[full.partition(".")[2]] = tensor
    for content in (state, {"state_dict": state}, *([parts] if name != "model_ema" else [])):
        model = Own()
        load_file(model, save(content, tmp_path))
        for full, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[full].to(tensor.dtype)), full


def test_an_average_that_says_so_by_its_counter_or_its_name(tmp_path: Path) -> None:
    loads_as(save(swa(AVERAGE), tmp_path), AVERAGE, kind="ema")
    path = save(AVERAGE, tmp_path).rename(tmp_path / "model_ema.pt")
    loads_as(path, AVERAGE, kind="ema")
    loads_as(path, AVERAGE, kind="raw")


def test_an_average_alone_is_known_without_dots(tmp_path: Path) -> None:
    model = nn.ModuleDict({"decoder": nn.Conv2d(2, 3, 1), "quantize": nn.Embedding(4, 2)})
    state = {n: t for n, t in squeezed(AVERAGE).items() if "encoder" not in n}
    load_file(model, save(state, tmp_path))
    assert torch.equal(model["decoder"].weight, AVERAGE["decoder.weight"])


def test_what_is_not_there_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.pt holds no moving average \(EMA\), only 'model'"):
        loads_as(save({"model": RAW}, tmp_path), RAW, kind="ema")
    with pytest.raises(UserError, match="x.pt holds no raw weights, only 'ema'"):
        loads_as(save({"ema": AVERAGE}, tmp_path), RAW, kind="raw")
    for kind in ("best", ""):
        with pytest.raises(UserError, match=f"--weights takes raw or ema, not '{kind}'"):
            WeightChoice.parse(kind)
    for kind in ("int8,best", "int8,", "int8,int8", "raw,ema,int8"):
        with pytest.raises(UserError, match="--weights takes raw or ema, not .* int8"):
            WeightChoice.parse(kind)


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("named", [True, False])
def test_an_encoder_alone_loads_where_that_is_asked_for(
    tmp_path: Path, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = {n: t for n, t in RAW.items() if n.startswith("encoder.")}
    if not named:
        encoder = {n.removeprefix("encoder."): t for n, t in encoder.items()}
    path = save({"state_dict": encoder}, tmp_path)
    with pytest.raises(UserError, match="to load encoder alone.*add --parts encoder"):
        loads_as(path, RAW)
    torch.manual_seed(0)
    start = Tiny().state_dict()
    torch.manual_seed(0)
    expected = {n: RAW[n] if n.startswith("encoder.") else t for n, t in start.items()}
    loads_as(path, expected, parts=["encoder"])
    assert "encoder alone: all other weights are random" in caplog.text
    with pytest.raises(UserError, match="the model has no 'coder', only encoder, decoder, quant"):
        loads_as(path, expected, parts=["coder"])
    for parts in [["decoder"], ["encoder", "decoder"]] if named else []:
        with pytest.raises(UserError, match=f"{path} has no 'decoder', only encoder"):
            loads_as(path, expected, parts=parts)


def test_tensors_that_are_not_dense_are_named(tmp_path: Path) -> None:
    name = next(name for name, tensor in RAW.items() if tensor.dim() > 1)
    for other in (RAW[name].to_sparse(), RAW[name].to("meta"), RAW[name][0].to_sparse()):
        for head in ("", "module."):
            state = {head + key: tensor for key, tensor in (RAW | {name: other}).items()}
            path = save({"state_dict": state}, tmp_path)
            with pytest.raises(UserError, match=f"'{head}{name}' is no dense tensor"):
                loads_as(path, RAW)


def test_several_parts(tmp_path: Path) -> None:
    state = {n: t for n, t in RAW.items() if not n.startswith("decoder.")}
    path = save(state, tmp_path)
    with pytest.raises(UserError, match="decoder: 2 keys missing.*--parts encoder,quantize"):
        loads_as(path, RAW)
    model = Tiny()
    with choosing_weights(None, ["encoder", "quantize"]):
        load_file(model, path)
    assert torch.equal(model.quantize.weight, RAW["quantize.weight"])


# ---------------------------------------------------------------------- files


def write_shards(folder: Path, names: dict[str, str], ending: str = ".safetensors") -> Path:
    index = folder / f"model{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards_are_read_by_their_index(tmp_path: Path, ending: str) -> None:
    files = [f"model-0000{i}-of-00002{ending}" for i in (1, 2)]
    names = {name: files[i % 2] for i, name in enumerate(RAW)}
    for file in files:
        part = {name: RAW[name] for name in RAW if names[name] == file}
        if ending == ".bin":
            torch.save(part, tmp_path / file)
        else:
            save_file(part, tmp_path / file)
    index = write_shards(tmp_path, names, ending)
    for path in (index, tmp_path / files[0], tmp_path):  # any of them stands for all
        loads_as(path, RAW)
    index.rename(tmp_path / "other.json")
    for path in (tmp_path / files[1], tmp_path):
        loads_as(path, RAW)
    (tmp_path / files[0]).rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"{files[1]} is one of 2 files, and {files[0]} is missing"):
        loads_as(tmp_path / files[1], RAW)
    (tmp_path / "away").rename(tmp_path / files[0])
    (tmp_path / "other.json").rename(index)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=rf"names {files[1]}, which is missing"):
        loads_as(index, RAW)


def test_an_index_names_files_beside_it_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_file(RAW, tmp_path / "model.safetensors")
    index = write_shards(tmp_path / "a", dict.fromkeys(RAW, "../model.safetensors"))
    with pytest.raises(UserError, match="no file beside it; refused"):
        loads_as(index, RAW)
    save_file(RAW, tmp_path / "a" / "model.safetensors")
    index = write_shards(tmp_path / "a", {"more": "model.safetensors"})
    with pytest.raises(UserError, match="names 'more', which is in none of its files"):
        loads_as(index, RAW)
    index.write_text('{"names": 1}')
    with pytest.raises(UserError, match="no index of weights: it has no 'weight_map'"):
        loads_as(index, RAW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_other_precisions_are_loaded_as_the_models_and_said(
    tmp_path: Path, kind: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in RAW.items()}
    loads_as(save(state, tmp_path, kind), {n: t.float() for n, t in state.items()})
    assert f"{str(dtype).removeprefix('torch.')} as float32" in caplog.text


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "x.ckpt")
    torch.save(RAW, tmp_path / "y.safetensors")
    for name in ("x.ckpt", "y.safetensors"):
        loads_as(tmp_path / name, RAW)


def test_training_goes_on_from_all_that_was_saved(tmp_path: Path) -> None:
    """The choice is for use: a checkpoint's own state is read as it is."""
    state = {**RAW, **squeezed(AVERAGE)}
    assert (
        read_checkpoint(save({"state_dict": state}, tmp_path))["state_dict"].keys() == state.keys()
    )


def test_what_is_beside_weights_is_kept(tmp_path: Path) -> None:
    read = read_checkpoint(save({"model": RAW, "global_step": 3}, tmp_path))
    assert read["global_step"] == 3 and read["state_dict"].keys() == RAW.keys()


def test_no_weights_are_said_to_be_none_only_if_that_is_true(tmp_path: Path) -> None:
    of_others: Any = ({"optimizer": {"state": {0: RAW}}}, {"callbacks": {"Best": {"model": RAW}}})
    for content in (*of_others, {"epoch": 1}, [3], {"state_dict": {}}):
        with pytest.raises(UserError, match="x.pt holds no model weights"):
            loads_as(save(content, tmp_path), RAW)


def test_names_and_places_need_not_be_text(tmp_path: Path) -> None:
    as_bytes = {name.encode(): tensor for name, tensor in RAW.items()}
    for content in ({0: RAW}, as_bytes, {b"model": as_bytes}, {"optimizer_targets": RAW}):
        loads_as(save(content, tmp_path), RAW)
    optimizer = torch.optim.Adam(Tiny().parameters())
    state = {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)}}
    content = {**optimizer.state_dict(), "state": state}
    with pytest.raises(UserError, match="x.pt holds no model weights"):
        loads_as(save(content, tmp_path), RAW)


def test_arrays_of_numpy_by_name(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in RAW.items()}
    for save_as in (np.savez, np.savez_compressed):
        for ending in (".npz", ".ckpt"):
            with (tmp_path / f"x{ending}").open("wb") as file:
                save_as(file, **arrays)
            loads_as(tmp_path / f"x{ending}", RAW)
    with (tmp_path / "y.npz").open("wb") as file:
        np.savez_compressed(file, zeros=np.zeros(10**7, np.float32))
    with pytest.raises(UserError, match="it says that it holds 40,000,128 bytes"):
        loads_as(tmp_path / "y.npz", RAW)


def test_numbers_that_are_none_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = RAW | {"decoder.bias": torch.full((3,), torch.nan)}
    load_file(Tiny(), path := save(state, tmp_path))
    assert f"{path}: 'decoder.bias' is not a number (NaN)" in caplog.text


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "taming.checkpoint")


def test_weights_in_a_list() -> None:
    state = {"encoder.conv.weight": torch.ones(2, 2), "decoder.conv.weight": torch.ones(2, 2)}
    for content in ([state, 3], (state,), {"models": [state]}):
        assert choose(content, "x").tensors.keys() == state.keys()


def test_what_was_chosen_before_holds_where_nothing_is_chosen() -> None:
    with choosing_weights("raw", ["encoder"]):
        with choosing_weights(None, ()):
            assert (weight_choice().kind, weight_choice().parts) == ("raw", ("encoder",))
        with choosing_weights(None, "decoder"):
            assert weight_choice().parts == ("decoder",)
        with choosing_weights("ema", ()):
            assert (weight_choice().kind, weight_choice().parts) == ("ema", ())
    assert weight_choice().kind is None
