"""Infinity's own command line in a model's folder, the first argument. Run by benchmarks.servers, in its environment.

Its ONNX engine finds a graph on this disk only as ./model.onnx. And it needs optimum 1.27, which looks for parts of
torch's older ONNX exporter, to export, which nothing here asks it to do; torch 2.13 has them in another place.
"""

import os
import sys

import torch.onnx.symbolic_opset14 as looked_for
from torch.onnx._internal.torchscript_exporter import symbolic_opset14 as moved_to

vars(looked_for).update({name: value for name, value in vars(moved_to).items() if name not in vars(looked_for)})

from infinity_emb.cli import cli  # noqa: E402  # reads what was just put there

if __name__ == "__main__":
    os.chdir(sys.argv.pop(1))
    cli()
