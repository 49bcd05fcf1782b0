"""Which parts of a run's config are published."""

from __future__ import annotations

from omegaconf import OmegaConf

from taming.export.publishing import own_paths, published_config


def test_paths_of_checkpoints_and_what_the_environment_holds_stay_here() -> None:
    model = {"target": "a.B", "params": {"n": 3, "ckpt_path": "/home/me/x.ckpt"}}
    data = {"params": {"train": ["/data/a", "b"], "size": "${model.params.n}"}}
    config = OmegaConf.create({"model": model, "data": data, "lightning": {"logger": "key"}})
    published = published_config(config)
    assert published["model"]["params"] == {"n": 3, "ckpt_path": None}
    assert published.keys() == {"model", "data"}
    assert own_paths(published) == ["data.params.train.0=/data/a"]
    config.data.params.size = "${oc.env:HOME}"
    assert published_config(config).keys() == {"model"}
