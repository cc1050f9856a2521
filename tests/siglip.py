"""SigLIP 2 of transformers with random weights and a tokenizer of Gemma's kind, in the layout of released folders."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import normalize

from tests.released import fill

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
WORDS = ("杰尼龟", "一只黑色的", "cat", "hello", "Hello", "world", "的猫", "▁cat", "▁world", "ǆ", "σ")
SMALL: dict[str, Any] = {  # neither tower is as large as the other
    "vision": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6}
    | {"image_size": 32, "patch_size": 8},
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"projection_size": 96},
}


def gemma_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-pair merges for a few words, bytes for what is unknown, and unused tokens up to the size."""
    pieces = [
        *SPECIAL,
        "\n\n",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *sorted({c for w in WORDS for c in w}),
        "▁",
    ]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    vocab |= {f"<unused{number}>": number for number in range(len(vocab), vocab_size)}
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken("\n\n", normalized=False)])
    backend.post_processor = processors.TemplateProcessing("$A <eos>", "$A <eos> $B <eos>", [("<eos>", 1)])
    return backend


def without_numbers(vocab_size: int, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """The model of transformers."""
    from transformers import SiglipConfig, SiglipModel
    from transformers.initialization import no_init_weights

    text = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": 1, **text}
    with no_init_weights():  # torch draws truncated normals again until they fit: not for memory as it is found
        return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()


def siglip2(vocab_size: int, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """The model of transformers with random numbers."""
    model = without_numbers(vocab_size, vision, text)
    fill(model)
    torch.nn.init.constant_(model.logit_scale, 4.7)  # above ln(100)
    return model


def save_as_released(model: Any, folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> Path:
    """As google/siglip2-base-patch16-224 has it: configs say what is not transformers' default."""
    vocab_size, side = model.config.text_config.vocab_size, model.config.vision_config.image_size
    config = {
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", "vocab_size": vocab_size, **text},
        "vision_config": {"model_type": "siglip_vision_model", **vision},
    }
    processor = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
    tokens: dict[str, Any] = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
    tokens |= {"padding_side": "right", "model_input_names": ["input_ids"], "do_lower_case": True}
    tokens |= {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    for name, content in {"config": config, "preprocessor_config": processor, "tokenizer_config": tokens}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    gemma_tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
    return folder


def their_token_ids(folder: Path, texts: list[str]) -> Tensor:
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    tokenizer = Siglip2Tokenizer.from_pretrained(folder)
    return tokenizer(texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt").input_ids


@torch.inference_mode()
def their_features(model: Any, token_ids: Tensor, pixels: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    images = model.get_image_features((pixels / 255 - 0.5) / 0.5, **how).pooler_output
    return normalize(images, dim=-1), normalize(model.get_text_features(token_ids).pooler_output, dim=-1)


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
