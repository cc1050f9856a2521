"""The model card of an export for transformers."""

from typing import Literal

from clip_core.model.contract import Contract


def model_card(contract: Contract, weights_id: str, family: Literal["ChineseCLIP", "Siglip"]) -> str:
    """README.md: what the model is, where it comes from and how it is used."""
    padding = '"max_length"' if family == "Siglip" else "True"
    size, made = contract.image_size, contract.made
    return f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
language:
- zh
tags:
- {"siglip" if family == "Siglip" else "chinese-clip"}
- clip
---

# Chinese CLIP, {contract.embed_dim} dimensions, {size} x {size} pixels

Encodes pictures and Chinese texts as vectors that can be compared. Exported by `clip_core` from weights `{weights_id}`.

| made by | trained on | started from |
|---|---|---|
| {made.stage} | {made.data} | {made.parent or made.text_tower} |

```python
from transformers import {family}Model, {family}Processor

model = {family}Model.from_pretrained("THIS FOLDER")
processor = {family}Processor.from_pretrained("THIS FOLDER", backend="pil")
```

- Pictures are resized to the square directly, without cropping (`preprocessor_config.json` says so), by Pillow
  as in training: torchvision, the default backend, gives numbers that differ by one or two of 256.
- Texts are cut at {contract.context_length} tokens: `processor(text=..., padding={padding}, truncation=True)`.
- Features are compared by cosine: divide them by their length first.
"""
