"""Weights as others save them: prefixes, containers, averages, parts, shards and dtypes."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taming.checkpoint import load_file, read_checkpoint, read_content
from taming.checkpoint.names import renamed
from taming.checkpoint.runs import find_run
from taming.checkpoint.weight_sets import choose, say
from taming.errors import UserError
from taming.weight_choice import choosing_weights, weight_choice
from tests.kit.weights import AVERAGE, RAW, Tiny, loads_as, prefixed, save


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    say.cache_clear()


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


@pytest.mark.parametrize("name", ["epoch-00001-of-00040.ckpt", "model-00001-of-00001.pt"])
def test_counters_in_names_make_no_shards(tmp_path: Path, name: str) -> None:
    contents: Any = ({"state_dict": RAW, "step": torch.tensor(3)}, {"model": RAW})
    for content in (*contents, {"a": {"model": RAW}}):
        torch.save(content, tmp_path / name)
        loads_as(tmp_path / name, RAW)
        assert find_run(tmp_path).checkpoint == tmp_path / name
    for number in (1, 2):
        torch.save({"model": RAW}, tmp_path / f"x-0000{number}-of-00002.pt")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="x-00001-of-00002.pt, x-00002-of-00002.pt: name one of"):
        find_run(tmp_path)
    loads_as(tmp_path / "x-00002-of-00002.pt", RAW)
    torch.save(RAW, tmp_path / "x-00001-of-00002.pt")
    torch.save([1], tmp_path / "x-00002-of-00002.pt")
    loads_as(tmp_path / "x-00001-of-00002.pt", RAW)


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
    halves = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in RAW.items()}
    two_bytes = {
        name: t.view(torch.int16).numpy().view("V2") if t.is_floating_point() else t.numpy()
        for name, t in halves.items()
    }
    swapped = {name: a.astype(a.dtype.newbyteorder(">")) for name, a in arrays.items()}
    beside = {"names": np.array(["a"]), "more": np.array([None]), "numbers": np.zeros(3, "u2")}
    for saved, expected in ((two_bytes, halves), (swapped, RAW)):
        np.savez(tmp_path / "x.npz", **saved, **beside)
        loads_as(tmp_path / "x.npz", {name: t.to(RAW[name].dtype) for name, t in expected.items()})
    np.savez(tmp_path / "x.npz", params=np.array({"a": 1}))
    with pytest.raises(UserError, match=r"x.npz: 'params' is an array of Python's objects; save"):
        loads_as(tmp_path / "x.npz", RAW)
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
