"""`python -m dall_e FOLDER`: the pickles, and what their networks compute.

In FOLDER/zip as torch writes them, in FOLDER/legacy as it did before 1.6.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dall_e.decoder import Decoder
from dall_e.encoder import Encoder
from dall_e.utils import CODES

torch.manual_seed(0)
encoder, decoder = Encoder(), Decoder()
x = torch.rand(2, 3, 16, 24) * 2 - 1
with torch.no_grad():
    indices = encoder(0.8 * (x + 1) / 2 + 0.1).argmax(dim=1)
    one_hot = F.one_hot(indices, CODES).permute(0, 3, 1, 2).float()
    mean = torch.sigmoid(decoder(one_hot)[:, :3])
expected = (((mean - 0.1) / 0.8).clamp(0, 1) * 2 - 1).contiguous()
for way in ("zip", "legacy"):
    folder = Path(sys.argv[1], way)
    folder.mkdir()
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        torch.save(network, folder / f"{name}.pkl", _use_new_zipfile_serialization=way == "zip")
    save_file({"x": x, "indices": indices, "expected": expected}, folder / "computed.safetensors")
