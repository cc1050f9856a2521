"""The text tower: any of transformers' text encoders; a text's feature is the state of its first token, [CLS].

Chinese-CLIP's is BERT: post-LN, exact GELU, LN eps 1e-12, learned positions, one segment, no pooler. SigLIP's differs
in three ways: padding is a token like others, so that all texts are as long as there are positions; the feature is the
state of the last one; and the projection has a bias.
"""

from difflib import get_close_matches
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from clip_core.config.model import Options
from clip_core.config.model import TextTower as TextTowerParams
from clip_core.errors import UserError
from clip_core.model.contract import TextArchitecture
from clip_core.model.registry import SIGLIP_TEXT

SPECIAL = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
PADDING_LEAKS = {"convbert", "nystromformer", "yoso"}  # through convolutions, means and hashes


class TextTower(nn.Module):
    """Maps token ids to one vector a text."""

    def __init__(self, architecture: TextArchitecture) -> None:
        super().__init__()
        make = {"bert": _make_bert, SIGLIP_TEXT: _make_siglip}.get(architecture.name, _make_encoder)
        self.encoder: Any = make(architecture)
        self.width: int = self.encoder.config.hidden_size
        self._is_bert, self.is_siglip = architecture.name == "bert", architecture.name == SIGLIP_TEXT

    def forward(self, token_ids: Tensor) -> Tensor:
        """(batch, length) token ids, padded with 0 -> (batch, width)."""
        if self.is_siglip:
            length = self.encoder.config.max_position_embeddings
            return self.encoder(input_ids=pad(token_ids, (0, length))[:, :length]).pooler_output
        mask = token_ids != 0
        if self._is_bert:  # four dimensions (batch, head, query, key): transformers uses such a mask as it is
            mask = mask[:, None, None, :].expand(-1, -1, token_ids.shape[1], -1)
        return self.encoder(input_ids=token_ids, attention_mask=mask).last_hidden_state[:, 0]


def _make_bert(architecture: TextArchitecture) -> nn.Module:
    # the narrowest import there is; transformers as a whole takes seconds
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    return BertModel(_configured(BertConfig, architecture), add_pooling_layer=False)


def _make_siglip(architecture: TextArchitecture) -> nn.Module:
    from transformers.models.siglip.configuration_siglip import SiglipTextConfig
    from transformers.models.siglip.modeling_siglip import SiglipTextModel

    encoder: Any = SiglipTextModel(_configured(SiglipTextConfig, architecture))
    encoder.head = nn.Identity()  # here it is the model's text_projection
    return encoder


def _make_encoder(architecture: TextArchitecture) -> nn.Module:
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    name, where = architecture.name, "model.text_tower.name"
    # What learnt to fill gaps sees both ways; [CLS] at the start of a decoder would see nothing of the text.
    if name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        similar = ", ".join(get_close_matches(name, MODEL_FOR_MASKED_LM_MAPPING_NAMES)) or "none"
        raise UserError(f"{where}: transformers has no text encoder {name!r}; similar names: {similar}")
    config = _configured(type(AutoConfig.for_model(name)), architecture)
    if config.is_encoder_decoder:
        raise UserError(f"{where}: {name} is an encoder with a decoder; name one without, as roberta")
    try:
        encoder = AutoModel.from_config(config, add_pooling_layer=False)
    except TypeError:  # many have no pooler
        encoder = AutoModel.from_config(config)
    if "attention_mask" not in signature(encoder.forward).parameters or name in PADDING_LEAKS:
        raise UserError(f"{where}: {name} does not mask a text's padding, which would change its features")
    if not hasattr(config, "hidden_size"):
        raise UserError(f"{where}: {name} is more than a text encoder; name another, as roberta")
    return encoder


def with_positions(tower: TextTowerParams, context_length: int) -> Options:
    """The tower's options, with as many positions as `context_length` needs where they do not say."""
    if tower.name in ("bert", SIGLIP_TEXT):
        return {"max_position_embeddings": context_length, **tower.options}
    from transformers import CONFIG_MAPPING

    if tower.name in CONFIG_MAPPING and "max_position_embeddings" not in CONFIG_MAPPING[tower.name]().to_dict():
        return tower.options
    # RoBERTa and its kin number positions from the padding's id on, which is 0 or (MPNet) 1.
    return {"max_position_embeddings": context_length + 2, **tower.options}


def _configured(kind: Any, architecture: TextArchitecture) -> Any:
    """The configuration; transformers itself would take any misspelt option without a word."""
    # Ids of another vocabulary's special tokens, of which the encoder itself makes no use.
    nothing: dict[str, Any] = dict.fromkeys(SPECIAL)
    usual = kind(**nothing).to_dict()
    known = [*usual, *kind.attribute_map]
    unknown = sorted(set(architecture.options) - set(known))
    if unknown:
        raise UserError(
            f"model.text_tower.options: {architecture.name} has no {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return kind(**nothing | architecture.options, vocab_size=architecture.vocab_size, pad_token_id=0)
