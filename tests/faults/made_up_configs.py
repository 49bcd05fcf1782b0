"""Configs with an entry missing, wrong or at another place, and command lines of all programs.

Unlike `made_up_input.config`, which changes anything into anything, each case has one fault, of a
kind that people make; every entry of the bases is reached.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.faults.cases import _DDCONFIG, _LOSS, _SCHEDULE
from tests.faults.made_up_input import BASES, KEYS, TRAINER_FLAGS, WORDS
from tests.faults.made_up_values import places

_NONE = "__none__"  # no value at all
WRONG: tuple[Any, ...] = (
    *(float("nan"), float("inf"), -1, -1e9, 0, 0.5, 1.5, 2, 7, 10**12, 10**30, 1e12, -0.0),
    *(True, None, "", "abc", "nan", "1e3", "-1", "~", "~/x", "a=b", "#x", "\0", "???", "${a.b}"),
    *([], [1, 2], [[1]], ["a"], [-1], [float("nan")], {}, {"a": 1}, {"target": 1}),
    *({"target": "taming.modules.util.Labelator"}, {"target": "os.getcwd"}),
)


def _others() -> dict[str, Any]:
    """Bases that use what those of the campaigns of training do not."""
    folder = {
        "target": "taming.data.folder.ImageFolderTrain",
        "params": {
            "root": "ASSETS/classes",
            "size": 8,
            "crop_size": 8,
            "random_crop": True,
            "random_flip": True,
            "validation_fraction": 0.2,
            "split_seed": 0,
            "on_error": "raise",
        },
    }
    data = {"batch_size": 2, "num_workers": 0, "timeout": 5.0, "wrap": False, "train": folder}
    lightning = {
        "trainer": {
            "max_epochs": 1,
            "accumulate_grad_batches": 1,
            "gradient_clip_val": 1.0,
            "limit_val_batches": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "callbacks": {
            "image_logger": {
                "params": {"batch_frequency": 10, "max_images": 2, "clamp": True},
            },
            "learning_rate_logger": {"params": {"logging_interval": "step"}},
            "stop": {
                "target": "pytorch_lightning.callbacks.EarlyStopping",
                "params": {"monitor": "train/loss", "patience": 2, "mode": "min"},
            },
        },
        "modelcheckpoint": {"params": {"save_top_k": 1, "last_every_n_minutes": 1.0}},
        "logger": {
            "target": "pytorch_lightning.loggers.CSVLogger",
            "params": {"save_dir": "csv", "name": "x"},
        },
        "seed": 23,
        "scale_lr": True,
        "skip_nonfinite": 0,
    }
    quantizer = {
        "target": "taming.modules.vqvae.quantize.EMAVectorQuantizer",
        "params": {
            "n_embed": 16,
            "embedding_dim": 4,
            "beta": 0.25,
            "decay": 0.9,
            "eps": 1e-5,
            "unknown_index": "random",
            "revive_after": 2,
        },
    }
    stage = {
        "target": "taming.models.vqgan.VQModel",
        "params": {
            "ddconfig": {**_DDCONFIG, "resamp_with_conv": True},
            "quantizer_config": quantizer,
            "lossconfig": {**_LOSS, "params": {**_LOSS["params"], "disc_loss": "vanilla"}},
            "scheduler_config": _SCHEDULE,
            "image_key": "image",
            "ignore_keys": [],
        },
    }
    gpt = {
        "vocab_size": 16,
        "block_size": 32,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "n_unmasked": 4,
    }
    order = {"target": "taming.modules.transformer.permuter.ZCurve", "params": {"H": 4, "W": 4}}
    second = {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "first_stage_config": stage,
            "cond_stage_config": "__is_first_stage__",
            "cond_stage_key": "image",
            "downsample_cond_size": 8,
            "permuter_config": order,
            "pkeep": 1.0,
            "sos_token": 0,
            "transformer_config": {
                "target": "taming.modules.transformer.mingpt.GPT",
                "params": gpt,
            },
        },
    }
    configs: dict[str, Any] = {}
    for name, model in (("quantizer", stage), ("conditional", second)):
        configs[name] = {
            "model": {"base_learning_rate": 1e-4, **model},
            "data": {"target": "main.DataModuleFromConfig", "params": data},
            "lightning": lightning,
        }
    configs = {name: copy.deepcopy(config) for name, config in configs.items()}
    watching = configs["quantizer"]["lightning"]["callbacks"]["stop"]
    watching["params"]["monitor"] = "train/rec_loss"
    return configs


ALL_BASES = BASES | _others()


def _parent(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        tree = tree[key]
    return tree


def wrong_entry(data: DataObject) -> Any:
    """A config with one entry missing or wrong."""
    tree = copy.deepcopy(data.draw(st.sampled_from(list(ALL_BASES.values()))))
    place = data.draw(st.sampled_from(places(tree)))
    value = copy.deepcopy(data.draw(st.sampled_from((*WRONG, _NONE))))
    node = _parent(tree, place)
    if value == _NONE:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return tree


def _mistyped(word: str, data: DataObject) -> str:
    at = data.draw(st.integers(0, max(len(word) - 2, 0)))
    kinds = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at : at + 1] * 2 + word[at + 1 :],
        word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :],
        word.upper(),
        f"{word} ",
    )
    return data.draw(st.sampled_from(kinds))


def key_elsewhere(data: DataObject) -> Any:
    """A config with one key mistyped, or moved up, down or beside."""
    tree = json.loads(
        json.dumps(data.draw(st.sampled_from(list(ALL_BASES.values()))))
    )  # no part twice
    known = [place for place in places(tree) if isinstance(place[-1], str)]
    place = data.draw(st.sampled_from(known))
    value = _parent(tree, place).pop(place[-1])
    if data.draw(st.booleans()):
        _parent(tree, place)[_mistyped(place[-1], data)] = value
        return tree
    nodes = [tree, *(_parent(tree, other) for other in places(tree))]
    mappings = [node for node in nodes if isinstance(node, dict)]
    data.draw(st.sampled_from(mappings))[place[-1]] = value
    return tree


# ---------------------------------------------------------------------- command lines

_MORE_WORDS = ("~", "~/x", "a=b", "#", "a #b", "none", "64", "bf16-true", "16-true", "32", "1.5")
_BASES = ("ASSETS/vqgan.yaml", "ASSETS/transformer.yaml", "missing.yaml", "ASSETS", "a=b.yaml")
_SET = tuple(key for key in KEYS if "." in key)


def _words(data: DataObject, flags: tuple[str, ...], most: int) -> list[str]:
    word = st.sampled_from(WORDS + _MORE_WORDS)
    pairs = st.lists(st.tuples(st.sampled_from(flags), word), min_size=1, max_size=most)
    words = [each for pair in data.draw(pairs) for each in pair]
    if data.draw(st.integers(0, 4)) == 0:
        words.pop(data.draw(st.integers(0, len(words) - 1)))
    if data.draw(st.integers(0, 4)) == 0:
        words.append(f"{data.draw(st.sampled_from(_SET))}={data.draw(word)}")
    return words


def main_arguments(data: DataObject) -> Any:
    """A command line of main.py, with more than one --base at times."""
    words = ["-b", "ASSETS/vqgan.yaml"]
    if data.draw(st.integers(0, 3)) == 0:
        words += ["-b", data.draw(st.sampled_from(_BASES))]
    return [*words, *_words(data, TRAINER_FLAGS, most=2)]


_RUN = ("-r", "run", "--device", "cpu")
_TINY = ("--extractor", "tests.kit.extractor:TinyExtractor", "--device", "cpu")
# Command lines that work, or end in a sentence, by the name of a script.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "sample_fast": (*_RUN, "-n", "1", "--classes", "1", "-o", "out"),
    "make_samples": (*_RUN, "-n", "1", "-c", "ASSETS/labeled.yaml", "--outdir", "out"),
    "complete": (
        *(*_RUN, "--image", "ASSETS/images/000.png", "--size", "8", "--condition", "1"),
        *("--keep", "left-half", "-n", "1", "-o", "out"),
    ),
    "reconstruct": (*_RUN, "ASSETS/images", "--size", "8", "-n", "2", "-o", "out"),
    "evaluate_transformer": (*_RUN, "--data", "ASSETS/labeled.yaml", "-n", "2", "-o", "out"),
    "make_shards": ("-b", "ASSETS/vqgan.yaml", "-o", "out", "-n", "10"),
    "preview_data": ("-b", "ASSETS/vqgan.yaml", "-o", "x.png", "-n", "2"),
    "make_image_list": ("ASSETS/images", "-o", "out"),
    "extract_submodel": ("run/checkpoints/last.ckpt", "x.ckpt"),
    "export": ("safetensors", "run", "x.safetensors"),
    "download_models": ("--list",),
    "evaluate_fid": ("ASSETS/images", "ASSETS/images", *_TINY, "-o", "out"),
    "compute_statistics": ("ASSETS/images", "x.npz", *_TINY),
    "figures": ("likelihood", *_RUN, "--data", "ASSETS/labeled.yaml", "-n", "2", "-o", "out"),
    "linear_probe": (*_RUN, "--images", "ASSETS", "--folds", "3", "-o", "out"),
    "reproduce": ("--list",),
}
_FLAGS = (
    *("-r", "-b", "-c", "-o", "-n", "-k", "-t", "-p", "-s", "--resume", "--base", "--config"),
    *("--outdir", "--num_samples", "--batch_size", "--top_k", "--top_p", "--temperature"),
    *("--classes", "--seed", "--size", "--device", "--precision", "--split", "--data", "--keep"),
    *("--pad", "--condition", "--image", "--guidance", "--guidance_schedule", "--per_shard"),
    *("--test_fraction", "--num_items", "--num_images", "--output", "--trust", "--height"),
    *("--reject_ratio", "--classifier", "--ignore_base_data", "--skip_bad", "--root", "--what"),
    *("--evaluators", "--metrics", "--reference_resize", "--reference_crop", "--reference_size"),
    *("--samples_resize", "--samples_size", "--samples_split", "--reject_pool", "--sweep"),
    *("--preset", "--neighbors", "--layer", "--folds", "--grid", "--format", "--evaluator"),
)


def script_arguments(data: DataObject) -> Any:
    """A script and a command line of it that works, with a word changed, left out, or more."""
    name = data.draw(st.sampled_from(list(SCRIPTS)))
    words = list(SCRIPTS[name])
    place = data.draw(st.integers(0, len(words) - 1))
    how = data.draw(st.integers(0, 3))
    if how == 0:
        del words[place]
    elif how == 1:
        words[place] = data.draw(st.sampled_from(WORDS + _MORE_WORDS))
    else:
        words += _words(data, _FLAGS, most=2)
    return [name, *words]
