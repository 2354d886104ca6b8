"""What the measuring needs and is not measured: environments, checkpoints, graphs. All are kept in build/bench.

Each is made once; the first time takes some ten minutes and as many gigabytes. What fails is said, and goes into the
results when its turn comes.
"""

from typing import Any

from benchmarks.contender import Contender, ContenderError, Process
from benchmarks.envs import PEERS, install
from benchmarks.models import MODELS, folder_of
from benchmarks.plan import Plan, say


def prepare(plan: Plan) -> dict[str, Any]:
    """The peers' versions, or why they do not install; for the results."""
    report: dict[str, Any] = {}
    for name in PEERS:
        say(f"prepare: the environment of {name}")
        installed = install(name)
        report[name] = installed.versions if installed.python else {"problem": f"pip: {installed.problem}"}
    for name in (*plan.races, plan.served, plan.fairness, plan.footprint):
        folder_of(MODELS[name])
    for name, race in plan.races.items():
        for contender in race.contenders:
            if contender.startswith("onnx"):
                say(f"prepare: {name}, the graph of {contender}")
                _export(name, int8=contender == "onnx-int8")
    return report


def _export(name: str, int8: bool) -> None:
    model = MODELS[name]
    try:
        with Process(Contender(f"export-{name}", "onnx_worker", "onnx")) as process:
            process.ask("export", model=str(folder_of(model)), options={"onnx_type": model.onnx_type, "int8": int8})
    except ContenderError as error:
        say(f"prepare: {name} has no graph: {error}")
