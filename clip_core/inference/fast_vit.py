"""timm's ViT in bf16 on the CPU: the same layers, with less work between them."""

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn


def rewrite_vit(image_tower: nn.Module) -> None:
    """Rewrites the tower in place where it is timm's ViT; afterwards it can neither be trained nor saved."""
    from timm.models.vision_transformer import VisionTransformer

    if type(image_tower) is not VisionTransformer:
        return
    patch_embed: Any = image_tower.patch_embed
    proj = patch_embed.proj
    if type(proj) is nn.Conv2d and proj.stride == proj.kernel_size and proj.padding == (0, 0):
        patch_embed.proj = Patches(proj)
    if plain := list(takewhile(_is_plain_block, image_tower.blocks)):
        image_tower.blocks = nn.Sequential(FastBlocks(plain), *image_tower.blocks[len(plain) :])


def _is_plain_block(block: Any) -> bool:
    from timm.layers import Mlp
    from timm.models.vision_transformer import Block

    return (
        type(block) is Block
        and is_plain(block.attn)
        and type(block.mlp) is Mlp
        and isinstance(block.mlp.norm, nn.Identity)
    )


def is_plain(attention: nn.Module) -> bool:
    """Whether timm's attention is queries, keys, values and their projection, and nothing else."""
    from timm.layers import Attention

    if type(attention) is not Attention or attention.gate is not None:
        return False
    return all(isinstance(norm, nn.Identity) for norm in (attention.q_norm, attention.k_norm, attention.norm))


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer on the memory of its `weight` (outputs, inputs) and `bias` (outputs)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


class Patches(nn.Module):
    """A convolution whose kernels do not overlap, as a linear layer: (batch, 3, height, width) -> the same as there."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.height, self.width = convolution.kernel_size
        self.linear = linear_of(convolution.weight.flatten(1), convolution.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """The tokens as channels: (batch, token width, rows of patches, columns of patches)."""
        height, width = pixels.shape[2:]  # what is less than a patch is left out, as by a convolution
        whole = pixels[:, :, : height - height % self.height, : width - width % self.width]
        patches = whole.unflatten(3, (-1, self.width)).unflatten(2, (-1, self.height))
        return self.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3)).permute(0, 3, 1, 2)


class FastBlocks(nn.Module):
    """Blocks one after another, without autocast, which would look at the types in each operation."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(FastBlock, blocks))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same in fp32."""
        tokens = tokens.float()
        with torch.autocast(tokens.device.type, enabled=False):
            for block in self.blocks:
                tokens = block(tokens)
        return tokens


class FastBlock(nn.Module):
    """A block of the ViT that spends less on memory: for one picture that is what is slow between the matrix products.

    torch's fused attention takes twice the time of these two products and a softmax in bf16.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.num_heads: int = attention.num_heads
        self.norm1, self.qkv, self.proj, self.ls1 = block.norm1, attention.qkv, attention.proj, block.ls1
        self.norm2, self.fc1, self.act, self.fc2, self.ls2 = block.norm2, mlp.fc1, mlp.act, mlp.fc2, block.ls2
        for tensor in self.qkv.parameters():  # the queries' part takes the scale of their products
            tensor[: attention.attn_dim].mul_(attention.scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) in fp32 -> the same, in the same memory."""
        # one picture after another: the products of all heads stay in the cache
        attended = [self._attend(rows) for rows in self.qkv(self.norm1(tokens)).split(1)]
        tokens.add_(self.ls1(self.proj(torch.cat(attended) if len(attended) > 1 else attended[0])))
        return tokens.add_(self.ls2(self.fc2(self.act(self.fc1(self.norm2(tokens))))))

    def _attend(self, rows: Tensor) -> Tensor:
        """(1, tokens, 3 x width) -> (1, tokens, width)."""
        heads = rows.view(rows.shape[1], 3, self.num_heads, -1).permute(1, 2, 0, 3).contiguous()
        query, key, value = heads.unbind()
        products = torch.bmm(query, key.mT)
        shares = torch.softmax(products, -1, out=products)
        return torch.bmm(shares, value).transpose(0, 1).reshape(1, rows.shape[1], -1)
