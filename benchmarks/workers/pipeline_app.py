"""The usual way: transformers' pipeline behind FastAPI, a request a thread. Run by uvicorn in its own environment."""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

app = FastAPI()
classify = pipeline("text-classification", model=os.environ["MODEL"], top_k=None, device="cpu", dtype="float32")


class Request(BaseModel):
    input: list[str]


@app.post("/classify")
def answer(request: Request) -> list[list[dict[str, float | str]]]:
    scored: list[list[dict[str, float | str]]] = classify(request.input, batch_size=32, truncation=True)
    return scored
