"""The model rewritten for inference: the same numbers (in fp32 to 1e-5), by faster kernels."""

import torch
from torch import Tensor, nn

LEAST_WEIGHTS = 2**18  # of a layer worth packing


class PackedLinear(nn.Module):
    """A linear layer by oneDNN, its weights laid out for the CPU's vector units once instead of in each call.

    In fp32 torch's own way is MKL, which on AMD reaches 40 % of this.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs.to(self.dtype), self.packed, self.bias, "none", [], "")


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x) with one buffer instead of three."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * 1.702).sigmoid_().mul_(inputs)


def make_fast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Rewrites the model in place and says whether layers were packed; it can neither be trained nor saved afterwards.

    With bf16 the layers that multiply matrices hold their weights so. The model must then run under `torch.autocast`;
    what lies between those layers (sums, norms) stays in fp32.
    """
    model.requires_grad_(False)
    if dtype != torch.float32:
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
    model.to(device)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _rewrite_for_cpu(model, dtype)


def _rewrite_for_cpu(model: nn.Module, dtype: torch.dtype) -> bool:
    from timm.layers import Attention, Mlp
    from timm.layers.activations import QuickGELU as TimmQuickGELU
    from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfAttention, BertSelfOutput

    # Their forward calls the layers and does nothing else with them; others read `layer.weight`.
    known = (Attention, Mlp, BertSelfAttention, BertSelfOutput, BertIntermediate, BertOutput)
    for parent in [module for module in model.modules() if isinstance(module, known)]:
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.numel() >= LEAST_WEIGHTS:
                setattr(parent, name, PackedLinear(child))  # the plain weights go, before the next are packed
            elif isinstance(child, TimmQuickGELU):
                setattr(parent, name, QuickGELU())
        if isinstance(parent, Attention) and dtype == torch.bfloat16:
            # torch's fused kernel takes twice the time of two products and a softmax
            parent.fused_attn = False  # ty: ignore[invalid-assignment]  (final for TorchScript)
    return any(isinstance(module, PackedLinear) for module in model.modules())
