"""Energy counters as Linux shows them: read, summed over a wrap, left out where not readable."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def energy() -> ModuleType:
    """The plugin's module, which needs nothing of the serving environment for RAPL."""
    path = ROOT / "envs/vllm-plugin/quantline_vllm/energy.py"
    spec = importlib.util.spec_from_file_location("energy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(root: Path, name: str, microjoules: int) -> Path:
    directory = root / name
    directory.mkdir()
    (directory / "energy_uj").write_text(f"{microjoules}\n")
    (directory / "max_energy_range_uj").write_text("10000000\n")
    return directory


def test_packages_are_counted_and_their_parts_are_not(tmp_path: Path, energy: ModuleType) -> None:
    package(tmp_path, "intel-rapl:0", 1_000_000)
    package(tmp_path, "intel-rapl:1", 4_000_000)
    package(tmp_path, "intel-rapl:0:0", 9_000_000)
    counters = energy.rapl_counters(tmp_path)
    assert [it.read_j() for it in counters] == [1.0, 4.0]


def test_a_counter_that_begins_again_goes_on(tmp_path: Path, energy: ModuleType) -> None:
    directory = package(tmp_path, "intel-rapl:0", 9_500_000)
    (counter,) = energy.rapl_counters(tmp_path)
    earlier = counter.read_j()
    (directory / "energy_uj").write_text("500000\n")
    assert counter.since(earlier) == pytest.approx(1.0)


def test_a_machine_without_counters_has_none(tmp_path: Path, energy: ModuleType) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy.rapl_counters(tmp_path) == []
