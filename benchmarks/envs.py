"""An environment for each peer, made by pip with the repository's constraints. Knows not what a peer is asked to do.

A peer that cannot be installed is an answer too: its error's last line goes into the results. To try again after a
change of the outside world, remove build/bench/envs.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import BUILD, REPOSITORY

_PACKAGES_OF_NOTE = ("torch", "transformers", "tokenizers", "onnxruntime", "openvino", "optimum", "fastapi", "uvicorn")


@dataclass(frozen=True, slots=True)
class Peer:
    """packages: what pip is asked for. torch: whether it comes first, exactly as constrained, without CUDA."""

    packages: tuple[str, ...]
    torch: bool = True


# torch.onnx writes the graph, onnxruntime.transformers fuses it; OpenVINO reads the same file unfused.
PEERS = {
    "onnx": Peer(("onnxruntime", "onnx", "onnxscript", "transformers", "tokenizers")),
    "openvino": Peer(("openvino", "tokenizers"), torch=False),
    "pipeline": Peer(("transformers", "fastapi", "uvicorn[standard]")),
    # What Infinity 0.0.78 needs and its metadata does not say: click below 8.2 (its typer breaks on later ones),
    # optimum below 2 and transformers below 4.49 (later ones took BetterTransformer out, which is imported at
    # start-up), pyarrow for the NumPy 1 that it pins.
    "infinity": Peer(
        (
            "infinity-emb[torch,server,optimum]",
            "click<8.2",
            "optimum[onnxruntime]<2",
            "transformers<4.49",
            "pyarrow<20",
        )
    ),
}


@dataclass(frozen=True, slots=True)
class Installed:
    """python: the environment's interpreter, or None where pip failed; problem says why. versions: of what matters."""

    python: Path | None
    versions: dict[str, str]
    problem: str = ""


def install(name: str) -> Installed:
    """The environment of a peer, made at the first call. Its own folder, its own interpreter."""
    peer = PEERS[name]
    folder = BUILD / "envs" / name
    done = folder / "installed.json"
    wanted = json.dumps(peer.packages)
    if not done.is_file() or json.loads(done.read_text("utf-8"))["wanted"] != wanted:
        for command in _commands(peer, folder):
            ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                return Installed(None, {}, _last_line(ran.stderr or ran.stdout))
        done.write_text(json.dumps({"wanted": wanted}), "utf-8")
    python = folder / "bin" / "python"
    return Installed(python, _versions(python, peer.packages))


def _commands(peer: Peer, folder: Path) -> list[list[str]]:
    pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "-q", "-c", "constraints.txt"]
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    if peer.torch:
        commands.append([*pip, "torch==2.13.0"])
    return [*commands, [*pip, *peer.packages]]


def _versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    listed = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {item["name"].lower().replace("_", "-"): item["version"] for item in json.loads(listed.stdout)}
    bare = {name.partition("[")[0].partition("<")[0].lower() for name in names} | set(_PACKAGES_OF_NOTE)
    return {name: found[name] for name in sorted(bare) if name in found}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "pip failed and said nothing"
