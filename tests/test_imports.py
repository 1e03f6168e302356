"""The house rules that a reader cannot check by eye: who imports whom, and who may touch what."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["encoder", "indexer", "query", "ui"]
BARE_MACHINE = {"torch", "torchvision", "timm", "numpy", "PIL", "yaml", "safetensors", "pydantic"}
# What may import a library, anywhere in the file.
OWNERS = {
    "lancedb": {
        "indexer/store.py",
        "indexer/tables.py",
        "indexer/commits.py",
        "indexer/connection.py",
        "indexer/ann.py",
    },
    "lance": {
        "indexer/store.py",
        "indexer/tables.py",
        "indexer/commits.py",
        "indexer/connection.py",
        "indexer/compaction.py",
    },
    "faiss": {"query/engines/faiss_ivf.py"},
    "duckdb": {"query/database.py", "query/parsing.py"},
    "streamlit": {
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "ui" / "views").glob("*.py")),
        "ui/server/serve.py",
        "ui/server/host_guard.py",
        "ui/server/sign_in.py",
    },
}
SOURCES = sorted(path for folder in ORDER for path in (ROOT / folder).rglob("*.py"))


def _imports(path: Path, top_only: bool = False) -> set[str]:
    """Root packages imported by a file: everywhere, or when the file itself is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name.split(".")[0] for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.add(child.module.split(".")[0])
            if not (top_only and _runs_later(child)):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_imports_only_to_its_right(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    assert _imports(path) & set(ORDER) <= allowed


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_only_its_owners_touch_a_library(library: str) -> None:
    users = {path.relative_to(ROOT).as_posix() for path in SOURCES if library in _imports(path)}
    assert users <= OWNERS[library]


def test_the_encoder_imports_only_what_a_bare_gpu_machine_has() -> None:
    for path in (ROOT / "encoder").rglob("*.py"):
        foreign = _imports(path, top_only=True) - BARE_MACHINE - set(sys.stdlib_module_names) - {"encoder"}
        assert not foreign, f"{path.name} imports {foreign} when it is imported"


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    for path in (ROOT / "ui" / "cli").rglob("*.py"):
        foreign = _imports(path, top_only=True) - {"typer", "ui", "encoder"} - set(sys.stdlib_module_names)
        assert not foreign, f"{path.name} imports {foreign} when it is imported"


def test_no_file_of_the_ui_shadows_a_package() -> None:
    # `streamlit run ui/app.py` puts ui/ first on the path.
    names = {path.stem for path in (ROOT / "ui").iterdir()}
    assert not names & {*ORDER, "pages"}
