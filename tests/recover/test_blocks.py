"""Cutting a network into blocks."""

import pytest
import torch
import torchvision
from recover_nets import Untraceable, images, residual
from torch import nn

from mvq.errors import ModelError
from mvq.recover.blocks import cut, trace
from mvq.tasks.networks.deeplab_v3 import DeepLabV3


def run(blocks, model, x):
    for block in blocks:
        x = block.run(model, x)
    return x


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "squeezenet1_1"])
@pytest.mark.parametrize("bytes_per_image", [1e9, 2 * 64 * 8 * 8])
def test_blocks_in_turn_are_the_network(name, bytes_per_image):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).eval()
    x = images(2, 64)
    blocks = cut(model, x, block_layers=3, bytes_per_image=bytes_per_image)
    with torch.no_grad():
        torch.testing.assert_close(run(blocks, model, x), model(x))
        assert len(blocks) >= 3
        for block in blocks[:-1]:
            x = block.run(model, x)
            assert 2 * x[0].numel() <= bytes_per_image
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(n for block in blocks for n in block.names if n in layers) == sorted(layers)


def test_sizes_of_the_input_that_come_back_at_the_end():
    model = DeepLabV3().eval()
    x = images(2, 65)
    blocks = cut(model, x, block_layers=3, bytes_per_image=1e9)
    assert len(blocks) > 10
    for n in (1, 2):
        with torch.no_grad():
            torch.testing.assert_close(run(blocks, model, x[:n]), model(x[:n]))


def test_no_border_inside_a_branch():
    model = residual()
    blocks = cut(model, images(2), block_layers=1, bytes_per_image=1e9)
    shortcut = next(b for b in blocks if "project.0" in b.names)
    assert {"expand.0", "depthwise.0", "project.0"} <= set(shortcut.names)
    assert len(blocks) == 4


def test_small_borders_join_blocks():
    assert len(cut(residual(), images(2), block_layers=1, bytes_per_image=1.0)) == 1


def test_untraceable_networks_are_one_block():
    net = Untraceable().eval()
    (block,) = cut(net, images(2), block_layers=1, bytes_per_image=1e9)
    x = images(2)
    torch.testing.assert_close(block.run(net, x), net(x))
    assert set(block.names) == {"", "a", "b"}


def test_trace_says_what_to_do():
    with pytest.raises(ModelError) as error:
        trace(Untraceable())
    text = str(error.value)
    assert text.startswith("model Untraceable cannot be traced by torch.fx: TypeError: ")
    assert text.endswith("; leave out the part 'permute' to recover it as one block")


def test_networks_of_two_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    with pytest.raises(ModelError, match=r"^model Two has 2 inputs, only networks of one image tensor are recovered$"):
        trace(Two())
