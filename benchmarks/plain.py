"""A plain server of transformers' model behind FastAPI, as one would write it first: `... FOLDER PORT`.

It answers /v1/embeddings. The texts of a request are padded to their longest.
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import ChineseCLIPModel, ChineseCLIPProcessor


class Question(BaseModel):
    input: list[str]


def main(folder: str, port: int) -> None:
    net = ChineseCLIPModel.from_pretrained(folder).eval()
    processor = ChineseCLIPProcessor.from_pretrained(folder)
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embed(question: Question) -> dict:
        inputs = processor(text=question.input, padding=True, truncation=True, max_length=52, return_tensors="pt")
        with torch.inference_mode():
            found = net.get_text_features(**inputs)
        features = getattr(found, "pooler_output", found)
        features = features / features.norm(dim=-1, keepdim=True)
        return {"data": [{"embedding": row} for row in features.tolist()]}

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
