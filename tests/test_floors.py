"""The architecture, kept: who may import whom, what nobody may import, and how a file looks.

Read from the syntax trees: lazy imports inside functions and type-only ones count like any other.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.tiny import save_bert

ROOT = Path(__file__).parents[1]
MAX_LINES = 350

# From the ground up, as the layout in the design has it. A module imports only what stands on a lower floor; modules
# on one floor do not import each other. Names that are not written yet have their places.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "imports"),
    ("",),  # assay/__init__.py
    ("config",),
    ("sequence",),
    ("labels",),
    ("calibration",),
    ("dialects.dialect",),
    (
        "dialects.inputs",
        "dialects.flags",
    ),
    (
        "dialects.classify",
        "dialects.native",
        "dialects.tei",
        "dialects.hf_inference",
        "dialects.scoring",
        "dialects.items",
        "dialects.rerank",
        "dialects.reward",
        "dialects.moderation",
        "dialects.detector",
        "dialects.guardrail",
        "dialects.kserve",
    ),
    ("dialects",),
    ("metrics",),
    ("model",),
    ("model.batch",),
    ("model.prefix",),
    ("model.company",),
    ("model.memory",),
    ("model.room",),
    ("model.compiled",),
    ("model.products",),
    ("model.attention",),
    ("model.activation",),
    ("model.kernels",),
    ("model.embedding", "model.linear"),
    ("model.norm",),
    ("model.mlp",),
    ("model.layer",),
    ("model.rotary",),
    ("model.blueprint",),
    ("model.decoder_config",),
    ("model.disentangled",),
    ("model.bert", "model.modernbert", "model.deberta", "model.decoder"),
    ("model.heads",),
    ("model.hub",),
    ("model.weights",),
    ("model.identity",),
    ("model.adapter",),
    ("model.registry",),
    ("model.reference",),
    ("model.fallback",),
    ("engine",),
    ("engine.budget", "engine.conversation"),
    ("engine.prices",),
    ("engine.filters",),
    ("engine.sandbox",),
    ("engine.chat", "engine.vocabularies", "engine.truncation"),
    ("engine.tokenizer",),
    ("engine.encoder",),
    ("engine.scheduler", "engine.admission", "engine.threads", "engine.aside", "engine.waiter", "engine.cache"),
    ("engine.runner", "engine.windows", "engine.calibrated"),
    ("engine.loading",),
    ("engine.worker",),
    ("engine.engine",),
    ("classifier",),
    ("verify",),
    ("files",),
    ("files.settings",),
    ("files.sources",),
    ("files.blocks",),
    ("files.delimited", "files.parquet"),
    ("files.lines",),
    ("files.readers",),
    ("files.added", "files.inputs", "files.fingerprint"),
    ("files.scorer", "files.unfinished", "files.writers"),
    ("files.arrow",),
    ("files.job",),
    ("files.plan",),
    ("evaluation",),
    ("evaluation.extra", "evaluation.settings", "evaluation.cells", "evaluation.ranking"),
    ("evaluation.dataset", "evaluation.truth", "evaluation.metrics", "evaluation.scoring"),
    ("evaluation.pairs", "evaluation.regression", "evaluation.bootstrap", "evaluation.curves", "evaluation.fit"),
    ("evaluation.mistakes",),
    ("evaluation.compare",),
    ("evaluation.tasks",),
    ("evaluation.evaluate",),
    ("evaluation.canvas",),
    ("evaluation.by_label", "evaluation.report", "evaluation.calibrate"),
    ("evaluation.figures",),
    ("evaluation.page",),
    ("server",),
    ("server.observation",),
    ("server.access_log",),
    ("server.tracing",),
    ("server.observe",),
    ("server.service",),
    ("server.exchange",),
    ("server.endpoint", "server.body"),
    ("server.failure",),
    ("server.scoring",),
    ("server.hosts",),
    ("server.auth",),
    ("server.kserve", "server.tokens"),
    ("server.status",),
    ("server.openapi",),
    ("server.docs_page",),
    ("server.app",),
    ("server.unread", "server.timer", "server.cycle", "server.outbox"),
    ("server.refusal",),
    ("server.listener", "server.protocol"),
    ("server.serve",),
    ("scale",),
    ("commands",),
    ("commands.options", "commands.progress", "commands.tables", "commands.report"),
    (
        "commands.serve",
        "commands.classify",
        "commands.calibrate",
        "commands.evaluate",
        "commands.models",
        "commands.verify",
    ),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {".".join(("assay", name)).rstrip("."): height for height, floor in enumerate(FLOORS) for name in floor}

# Tables of module names that are imported on demand. Nobody else imports by name.
LAZY_TABLES = {"assay", "assay.model.registry"}

FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "base", "helpers", "helper", "manager"}

# Plain data and policy: neither a device, nor a thread, nor an event loop.
PURE = (
    "errors",
    "config",
    "sequence",
    "labels",
    "calibration",
    "dialects",
    "metrics",
    "engine.scheduler",
    "engine.cache",
)
HEAVY = {"torch", "transformers", "tokenizers", "threading", "asyncio", "concurrent", "multiprocessing"}

# Who may know of what. Everything else may not.
ONLY_THERE = {
    "transformers": ("assay.model.reference",),
    "starlette": ("assay.server", "assay.scale"),
    "uvicorn": ("assay.server", "assay.scale"),
    "typer": ("assay.cli", "assay.commands"),
    "rich": ("assay.cli", "assay.commands"),
    "huggingface_hub": ("assay.model.hub",),
    "pyarrow": ("assay.files",),
    "numpy": ("assay.evaluation",),
    "scipy": ("assay.evaluation",),
    "sklearn": ("assay.evaluation",),
    "matplotlib": ("assay.evaluation",),
    "safetensors": ("assay.model.weights", "assay.model.adapter"),
    "prometheus_client": ("assay.metrics", "assay.server"),
    "opentelemetry": ("assay.server.tracing",),
}


def read_sources(root: Path = ROOT) -> dict[str, str]:
    """Every module under assay/, by its dotted name."""
    sources = {}
    for path in sorted((root / "assay").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    return sources


SOURCES = read_sources()


def imports_of(module: str, source: str, known: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """(imported module, line) at any depth; a name that is itself one of ours counts as that module."""
    is_package = any(name.startswith(f"{module}.") for name in known)
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield (submodule if submodule in known else origin), node.lineno
        elif (
            isinstance(node, ast.Call)
            and _called(node) in {"import_module", "__import__"}
            and module not in LAZY_TABLES
        ):
            argument = node.args[0] if node.args else None
            is_literal = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            yield (argument.value if is_literal else "<a name computed at run time>"), node.lineno


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Each module and those of ours that it imports."""
    return {
        module: {name for name, _ in imports_of(module, source, sources) if name.partition(".")[0] == "assay"}
        for module, source in sources.items()
    }


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the order of the floors, in words."""
    found = []
    for module, source in sources.items():
        if module not in FLOOR_OF:
            found.append(f"{module} stands on no floor: give it its place in FLOORS, in {Path(__file__).name}")
            continue
        for name, line in imports_of(module, source, sources):
            if name.startswith("<"):
                found.append(f"{module}:{line} imports {name}; only {sorted(LAZY_TABLES)} may")
            elif name.partition(".")[0] == "assay" and name not in sources:
                found.append(f"{module}:{line} imports {name}, which does not exist")
            elif name in FLOOR_OF and FLOOR_OF[name] >= FLOOR_OF[module]:
                where = "its own floor" if FLOOR_OF[name] == FLOOR_OF[module] else "a higher floor"
                found.append(f"{module}:{line} imports {name}, which stands on {where}")
    return found


def circle(sources: Mapping[str, str]) -> list[str]:
    """The modules of an import circle, or []."""
    try:
        TopologicalSorter(graph_of(sources)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def closure(module: str, sources: Mapping[str, str]) -> set[str]:
    """A module, and all of ours that it imports, directly or not."""
    graph, seen, to_see = graph_of(sources), set(), [module]
    while to_see:
        name = to_see.pop()
        if name not in seen:
            seen.add(name)
            to_see += graph.get(name, ())
    return seen


# The tree as it is


def test_modules_import_only_from_lower_floors() -> None:
    assert violations(SOURCES) == []


def test_no_import_circles() -> None:
    assert circle(SOURCES) == []


def test_names_in_lazy_tables_exist() -> None:
    named = {
        node.value
        for module in LAZY_TABLES
        for node in ast.walk(ast.parse(SOURCES[module]))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("assay.")
    }
    assert len(named) >= 3
    assert named <= set(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_is_short_named_and_says_what_it_does(module: str) -> None:
    source = SOURCES[module]
    lines = source.count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines; {MAX_LINES} are allowed: split it"
    assert not FORBIDDEN_NAMES & set(module.split(".")), f"{module}: the name says nothing of what the file does"
    if source.strip():
        assert ast.get_docstring(ast.parse(source)), f"{module} does not open with what it does and does not know"


READS_ENVIRONMENT = ("assay.cli", "assay.commands.serve")


@pytest.mark.parametrize("module", [m for m in sorted(SOURCES) if m not in READS_ENVIRONMENT])
def test_only_the_command_line_reads_the_environment(module: str) -> None:
    assert environment_reads(SOURCES[module]) == []


def environment_reads(source: str) -> list[int]:
    """Lines that touch os.environ or os.getenv, however they were imported."""
    names = {"environ", "environb", "getenv", "getenvb"}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
    ]


@pytest.mark.parametrize(
    "module", [name for name in SOURCES for pure in PURE if f"{name}.".startswith(f"assay.{pure}.")]
)
def test_plain_data_and_policy_stay_plain(module: str) -> None:
    for needed in closure(module, SOURCES):
        outside = {name.partition(".")[0] for name, _ in imports_of(needed, SOURCES[needed], SOURCES)}
        assert not outside & HEAVY, f"{module} reaches {sorted(outside & HEAVY)} through {needed}"


@pytest.mark.parametrize("library", ONLY_THERE)
def test_libraries_stay_where_they_belong(library: str) -> None:
    for module, source in SOURCES.items():
        allowed = any(f"{module}.".startswith(f"{place}.") for place in ONLY_THERE[library])
        for name, line in imports_of(module, source, SOURCES):
            assert allowed or name.partition(".")[0] != library, f"{module}:{line} imports {library}"


# The checker can fail


def tree_with(module: str, source: str) -> dict[str, str]:
    """A tree of empty files, but for one."""
    return dict.fromkeys(FLOOR_OF, "") | {module: source}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        (
            "assay.config",
            "from assay.engine.engine import Engine",
            "assay.engine.engine, which stands on a higher floor",
        ),
        ("assay.config", "import assay.cli as line", "assay.cli, which stands on a higher floor"),
        ("assay.config", "def f():\n    from assay import classifier", "config:2 imports assay.classifier, which"),
        (
            "assay.config",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from assay.sequence import Prompt",
            "config:3 imports assay.sequence, which stands on a higher floor",
        ),
        ("assay.model.batch", "from .heads import Head", "assay.model.heads, which stands on a higher floor"),
        ("assay.model.batch", "from . import heads", "assay.model.heads, which stands on a higher floor"),
        (
            "assay.model.batch",
            "from ..engine.runner import Batch",
            "assay.engine.runner, which stands on a higher floor",
        ),
        ("assay.dialects", "from ..server import app", "assay.server.app, which stands on a higher floor"),
        ("assay.errors", "import importlib\nimportlib.import_module('assay.cli')", "errors:2 imports assay.cli, which"),
        (
            "assay.errors",
            "from importlib import import_module as i\nimport_module(name)",
            "a name computed at run time",
        ),
        ("assay.dialects.tei", "from assay.dialects.classify import parse", "which stands on its own floor"),
        ("assay.model.deberta", "from assay.model import bert", "assay.model.bert, which stands on its own floor"),
        ("assay.config", "from assay.config import Device", "which stands on its own floor"),
        ("assay.cli", "from assay.gone import x", "assay.gone, which does not exist"),
        ("assay.model.novel", "", "assay.model.novel stands on no floor: give it its place in FLOORS"),
    ],
)
def test_the_checker_sees(module: str, source: str, complaint: str) -> None:
    found = violations(tree_with(module, source))
    assert len(found) == 1
    assert complaint in found[0]


def test_the_checker_lets_pass() -> None:
    source = (
        "import torch\nfrom .batch import pack\nfrom assay.errors import AssayError\nfrom assay import __version__\n"
        "getLogger('assay.engine')"
    )
    assert violations(tree_with("assay.model.heads", source)) == []


def test_the_checker_sees_circles() -> None:
    fake = {"assay.a": "from assay.b import x", "assay.b": "def f():\n    import assay.c", "assay.c": "import assay.a"}
    assert set(circle(fake)) == {"assay.a", "assay.b", "assay.c"}


@pytest.mark.parametrize(
    "source", ["import os\nx = os.environ['A']", "from os import getenv", "import os as o\no.getenv('A')"]
)
def test_the_checker_sees_environment_reads(source: str) -> None:
    assert environment_reads(source)


# What importing costs, in a fresh process


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["assay", "assay.dialects", "assay.cli", "assay.engine.scheduler"])
def test_importing_is_cheap(module: str) -> None:
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    loaded = set(run(code, module).split())
    assert module in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "rich", "numpy", "scipy", "sklearn", "matplotlib"}


def test_a_model_is_loaded_and_run_without_what_takes_a_start_long(tmp_path: Path) -> None:
    """torch's compiler is a second and hundreds of MiB, the hub's client 0.2 s, templates for conversations and for a
    terminal 0.05 s each; one import or one call in the wrong place brings all of it.
    """
    save_bert(tmp_path, num_hidden_layers=1)
    code = (
        "import sys, assay.server.serve; from assay import Classifier\n"
        "with Classifier(sys.argv[1]) as classifier: classifier.classify('the coffee')\n"
        "print(*sys.modules)"
    )
    loaded = set(run(code, str(tmp_path)).split())
    assert "assay.model.attention" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor", "sympy", "huggingface_hub", "jinja2", "rich"}


def test_a_native_checkpoint_is_served_without_transformers(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=1)
    code = (
        "import sys; from assay import Classifier\n"
        "with Classifier(sys.argv[1]) as classifier: print(classifier.classify('the coffee')[0].label)\n"
        "assert 'torch' in sys.modules\n"
        "print('transformers' in sys.modules)"
    )
    label, imported = run(code, str(tmp_path)).split()
    assert label.startswith("LABEL_")
    assert imported == "False"
