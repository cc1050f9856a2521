"""The model rewritten for inference: the same numbers (in fp32 to 1e-5), by faster kernels."""

import torch
from timm.layers import Attention, Mlp
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from clip_core.inference.fast_vit import FastBlock, Patches, rewrite_vit
from clip_core.inference.first_token import FirstOfBlock, keep_first_tokens
from clip_core.model.clip import CLIP

LEAST_WEIGHTS = 2**18  # of a layer worth packing


class PackedLinear:
    """A linear layer by oneDNN, its weights laid out for the CPU's vector units once instead of in each call.

    In fp32 torch's own way is MKL, which on AMD reaches 40 % of this. `activation` is oneDNN's, done on the way out.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        self.dtype, self.bias, self.activation = linear.weight.dtype, linear.bias, activation
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def __call__(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise.default(inputs, self.packed, self.bias, self.activation, [], "")


def make_fast(model: CLIP, device: torch.device, dtype: torch.dtype) -> bool:
    """Rewrites the model in place and says whether layers were packed; it can neither be trained nor saved afterwards.

    With bf16 the layers that multiply matrices hold their weights so. The model must then run under `torch.autocast`;
    what lies between those layers (sums, norms) stays in fp32.
    """
    model.requires_grad_(False)
    keep_first_tokens(model)
    packs = device.type == "cpu" and can_pack(dtype)
    if packs and dtype == torch.bfloat16:
        rewrite_vit(model.image_tower)
    packed = _layers_to_pack(model) if packs else []
    swish = {(parent, name) for parent, name in packed if name == "fc1" and _turn_to_swish(parent)}
    if dtype != torch.float32:
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
    for parent, name in packed:  # one after another: memory never holds all weights twice
        layer = getattr(parent, name)
        delattr(parent, name)
        setattr(parent, name, PackedLinear(layer, "swish" if (parent, name) in swish else "none"))
        del layer
    model.to(device)
    return bool(packed)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN's packed layers: without AVX-512 torch refuses to make those of bf16.

    The bf16 that torch then imitates is right and slow.
    """
    is_bf16 = dtype == torch.bfloat16
    return torch.backends.mkldnn.is_available() and (not is_bf16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _layers_to_pack(model: CLIP) -> list[tuple[nn.Module, str]]:
    """The large linear layers, each as a module and the name of its layer."""
    from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfAttention, BertSelfOutput

    bert = (BertSelfAttention, BertSelfOutput, BertIntermediate, BertOutput)
    # Their forward calls the layers and does nothing else with them; others read `layer.weight`.
    known: tuple[type, ...] = (Attention, Mlp, Patches, FastBlock, FirstOfBlock, *bert)
    if model.text_tower.is_siglip:
        from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipMLP

        known += (SiglipAttention, SiglipMLP)
    return [
        (parent, name)
        for parent in model.modules()
        if isinstance(parent, known)
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and (layer.weight.numel() >= LEAST_WEIGHTS or isinstance(parent, FastBlock))
    ]


def _turn_to_swish(parent: nn.Module) -> bool:
    """Writes QuickGELU, x sigmoid(1.702 x), as swish(1.702 x) / 1.702, which oneDNN knows, and says whether it did.

    The layers around it take the factors; the swish is left to the first one's kernel.
    """
    plain = isinstance(parent, FastBlock) or (isinstance(parent, Mlp) and isinstance(parent.norm, nn.Identity))
    if not (plain and isinstance(parent.act, QuickGELU)):
        return False
    for tensor in parent.fc1.parameters():
        tensor.mul_(1.702)
    parent.fc2.weight.div_(1.702)
    parent.act = nn.Identity()
    return True
