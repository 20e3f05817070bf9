"""Under autocast the layers of a block compute in its dtype, and the residual stream stays float32."""

import torch

from fastvtp.modules.layers import Transformer
from fastvtp.modules.packing import Packing


def test_a_transformer_under_autocast():
    torch.manual_seed(0)
    transformer, dtypes = Transformer(32, 2, 4), set()
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    x, packing = torch.randn(12, 32), Packing.uniform(3, 4)
    expected = transformer(x, packing)
    assert dtypes == {torch.float32}
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = transformer(x, packing)
    assert dtypes == {torch.bfloat16}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
