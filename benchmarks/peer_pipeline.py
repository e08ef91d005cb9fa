"""The peer that most people would write first: FastAPI around `transformers.pipeline`, one uvicorn worker, torch.

`python benchmarks/peer_pipeline.py BUNDLE PORT` listens on 127.0.0.1. The weights, the pooling, the prefix and so the
answers are those of the bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import transformers
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers.modeling_outputs import SequenceClassifierOutput

from xlt_ray.inference import bundle


class Classifier(transformers.PreTrainedModel):
    """A bundle's network in the form that a pipeline takes."""

    config_class = transformers.BertConfig
    _supports_sdpa = True

    def __init__(self, network: Any, labels: tuple[str, ...]) -> None:
        config = network.encoder.config
        config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
        config.num_labels, config.problem_type = len(labels), "single_label_classification"
        super().__init__(config)
        self.network = network

    def forward(self, input_ids: Any, attention_mask: Any, **rest: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.network({"input_ids": input_ids, "attention_mask": attention_mask}))


class Request(BaseModel):
    texts: list[str]


def application(folder: Path) -> FastAPI:
    found = bundle.load(folder)
    model = Classifier(found.network, found.labels).eval()
    tokenizer = found.tokenize.tokenizer
    tokenizer.model_max_length = found.tokenize.max_length
    classify = transformers.TextClassificationPipeline(model=model, tokenizer=tokenizer)
    app = FastAPI()

    @app.post("/v1/classify")
    def answer(request: Request) -> dict[str, Any]:
        results = classify([found.tokenize.prefix + text for text in request.texts], truncation=True)
        return {"results": [{"label": one["label"], "score": one["score"]} for one in results]}

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("port", type=int)
    args = parser.parse_args()
    uvicorn.run(application(args.bundle), host="127.0.0.1", port=args.port, log_level="warning")
