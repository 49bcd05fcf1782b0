import torch

from taming.modules.misc.coord import CoordStage
from tests.support import assert_close, load_golden


def test_golden_coordinates():
    golden, spec = load_golden("misc")
    stage = CoordStage(**spec["coord"]).eval()
    codes, loss, (_, _, indices) = stage.encode(golden["coord.c"])
    assert loss is None
    assert_close(codes, golden["coord.quant"])
    assert_close(indices, golden["coord.indices"])
    assert_close(stage.decode(codes), golden["coord.decode"])


def test_indices_stay_inside_the_vocabulary():
    _, _, (_, _, indices) = CoordStage(n_embed=64, down_factor=4).encode(torch.ones(1, 1, 8, 8))
    assert indices.unique().tolist() == [63]
    outside = torch.tensor([-0.5, 2.0]).reshape(1, 1, 1, 2)
    assert CoordStage(10, 1).encode(outside)[2][2].flatten().tolist() == [0, 9]
