"""bench: every attack against every detector, in one table."""

from intaglio.bench.cells import Cell
from intaglio.bench.recipe import AttackRow, BenchRecipe, NetworkRow, read_bench_recipe
from intaglio.bench.running import bench_table, run_bench
from intaglio.bench.table import BenchTable
from intaglio.bench.victims import VictimRecord

__all__ = [
    "AttackRow",
    "BenchRecipe",
    "BenchTable",
    "Cell",
    "NetworkRow",
    "VictimRecord",
    "bench_table",
    "read_bench_recipe",
    "run_bench",
]
