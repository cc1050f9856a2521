"""The text tower: transformers' BERT without its pooler; a text's feature is the state of [CLS]."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_core.config import TextTower
from clip_core.model.contract import TextArchitecture


class BertTextTower(nn.Module):
    """BERT as Chinese-CLIP uses it: post-LN, exact GELU, LN eps 1e-12, learned positions, one segment."""

    def __init__(self, architecture: TextArchitecture) -> None:
        super().__init__()
        # takes seconds; the narrowest import there is
        from transformers.models.bert.configuration_bert import BertConfig
        from transformers.models.bert.modeling_bert import BertModel

        config = BertConfig(
            vocab_size=architecture.vocab_size,
            hidden_size=architecture.hidden_size,
            num_hidden_layers=architecture.num_hidden_layers,
            num_attention_heads=architecture.num_attention_heads,
            intermediate_size=architecture.intermediate_size,
            max_position_embeddings=architecture.num_positions,
            hidden_dropout_prob=architecture.dropout,
            attention_probs_dropout_prob=architecture.dropout,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(batch, length) token ids, padded with 0 -> (batch, hidden_size)."""
        # Four dimensions (batch, head, query, key): transformers uses such a mask as it is.
        mask = (token_ids != 0)[:, None, None, :].expand(-1, -1, token_ids.shape[1], -1)
        return self.bert(input_ids=token_ids, attention_mask=mask).last_hidden_state[:, 0]


def architecture_of_bert(folder: Path, vocab_size: int) -> TextArchitecture:
    """The architecture that the config.json of a Hugging Face BERT folder describes."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        activation, width = config.get("hidden_act", "gelu"), config["vocab_size"]
        tower = TextTower(
            hidden_size=config["hidden_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            dropout=float(config.get("hidden_dropout_prob", 0.1)),
        )
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a BERT folder: it has no config.json") from None
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path}: not the config of a BERT: {error!r}") from None
    if activation != "gelu":
        raise ValueError(f"{path}: hidden_act is {activation!r}; only BERT's own 'gelu' is supported")
    if width != vocab_size:
        raise ValueError(f"{path}: vocab_size is {width}, but vocab.txt has {vocab_size} tokens")
    return TextArchitecture(
        **tower.model_dump(), vocab_size=width, num_positions=config.get("max_position_embeddings", 512)
    )


def load_bert(tower: BertTextTower, folder: Path) -> None:
    """Fills the tower with the weights of a Hugging Face BERT folder (safetensors, else a bin of weights only)."""
    wanted = tower.bert.state_dict()
    found = {_our_name(name): tensor for name, tensor in _read_tensors(folder).items()}
    missing = sorted(set(wanted) - set(found))
    misshapen = sorted(name for name in wanted if name in found and wanted[name].shape != found[name].shape)
    if missing or misshapen:
        raise ValueError(f"{folder}: not the weights that its config.json describes: {missing=}, {misshapen=}")
    tower.bert.load_state_dict({name: found[name] for name in wanted})


def _our_name(name: str) -> str:
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").exists():
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")
    if (folder / "pytorch_model.bin").exists():
        return torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    raise ValueError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin")
