"""Compare the shape of this code with others: `python -m benchmarks.structure [--nanochat DIR]`.

It counts the lines of the graph, the files of the largest package, and the lines of files and
functions. A function is every `def`, methods included, from its first decorator to its last line.
model_signing and compressed_tensors are those that set-up installs; `--nanochat` names a checkout
of github.com/karpathy/nanochat.
"""

import argparse
import ast
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.result import Row, publish

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = {
    "model_signing": (".venv", "model-signing"),
    "compressed_tensors": (".venv-serve", "compressed-tensors"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanochat", type=Path, help="a checkout of nanochat")
    nanochat_dir = parser.parse_args().nanochat
    rows, notes = own_rows(), []
    rows += shape_rows("quantline", ROOT / "pipeline")
    for name, (environment, distribution) in INSTALLED.items():
        (site_packages,) = (ROOT / environment).glob("lib/python*/site-packages")
        rows += shape_rows(name, site_packages / name)
        notes.append(f"{distribution} {installed_version(site_packages, distribution)}")
    if nanochat_dir is not None:
        rows += shape_rows("nanochat", nanochat_dir / "nanochat")
        notes.append("nanochat: the checkout named on the command line")
    publish("structure", rows, notes)


def own_rows() -> list[Row]:
    """Count lines of dvc.yaml, and the files of the largest package of `pipeline/`."""
    files = [path for path in (ROOT / "pipeline").rglob("*.py") if path.name != "__init__.py"]
    (package, num_files), *_ = Counter(path.parent for path in files).most_common(1)
    graph_lines = len((ROOT / "dvc.yaml").read_text().splitlines())
    largest = package.relative_to(ROOT).as_posix()
    return [
        Row("dvc_yaml_lines", graph_lines, None, None, "lines"),
        Row("files_in_largest_package", num_files, None, None, f"files, {largest}"),
    ]


def shape_rows(name: str, directory: Path) -> list[Row]:
    """Measure files and functions below `directory`: median and 95th percentile of their lines."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(directory.rglob("*.py"))]
    sources = [source for source in sources if source.strip()]
    file_lines = [len(source.splitlines()) for source in sources]
    function_lines = [length for source in sources for length in function_lengths(source)]
    return [
        Row(f"{name}_files", len(sources), None, None, "files"),
        Row(f"{name}_file_median", median(file_lines), None, None, "lines"),
        Row(f"{name}_file_p95", float(np.percentile(file_lines, 95)), None, None, "lines"),
        Row(f"{name}_functions", len(function_lines), None, None, "functions"),
        Row(f"{name}_function_median", median(function_lines), None, None, "lines"),
        Row(f"{name}_function_p95", float(np.percentile(function_lines, 95)), None, None, "lines"),
    ]


def function_lengths(source: str) -> list[int]:
    """Count the lines of every function of a module, decorators included."""
    lengths = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lengths.append((node.end_lineno or node.lineno) - first + 1)
    return lengths


def installed_version(site_packages: Path, name: str) -> str:
    installed = distributions(path=[str(site_packages)])
    return {found.metadata["Name"]: found.version for found in installed}[name]


if __name__ == "__main__":
    main()
