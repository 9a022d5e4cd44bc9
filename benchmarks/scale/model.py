"""The load of each part at 100 replicas, 1,000 trials and 10 million rows, as a share of its capacity."""

from collections.abc import Mapping
from typing import Any

from made_up import BLOCK_ROWS
from measure import MILLION

from raykd.teachers import pool as pool_module

TEACHERS, REPLICAS, TRIALS, AT_ONCE, ROWS = 10, 100, 1000, 64, 10 * MILLION
REPLICA_ROWS_S, TRIAL_SECONDS = 500.0, 600.0  # rows/s of a replica; seconds of a trial
MAPS = 65_530  # vm.max_map_count, Linux's default


SCALE = (
    f"{TEACHERS} teachers of {ROWS:,} rows, {REPLICAS} replicas of {REPLICA_ROWS_S:.0f} rows/s;\n"
    f"{TRIALS:,} trials, {AT_ONCE} at once, {TRIAL_SECONDS:.0f} s each: part, cost, share used, used up at"
)


def at(costs: Mapping[str, Any], name: str, size: float) -> float:
    """A cost at a larger size: linear through the smallest and the largest measured size, if it increases."""
    sizes = sorted(int(key) for key in costs if key.isdigit())
    low, high = (costs[str(sizes[i])][name] for i in (0, -1))
    return max(high, low + (high - low) * (size - sizes[0]) / (sizes[-1] - sizes[0]))


def shares(found: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
    """(part, its cost at that scale, share of the capacity, size at which the share is 100%), largest share first."""
    rows_m, made = ROWS / MILLION, []

    def add(part: str, cost: str, used: float, of: float = 1.0, unit: float = ROWS, name: str = "rows") -> None:
        share = used / of
        made.append((part, cost, share, f"{unit / share:,.3g} {name}" if share else ""))

    if "pool" in found:
        ms, rate = at(found["pool"], "thread_ms_per_block", REPLICAS), REPLICAS * REPLICA_ROWS_S / BLOCK_ROWS
        cost = f"{ms:.1f} ms a block, {rate:.0f} blocks/s"
        add("driver's thread of the fill, one core", cost, ms * rate / 1000, 1, REPLICAS, "replicas")
    if "index" in found and "store" in found:
        per_block = 1000 * BLOCK_ROWS / REPLICA_ROWS_S
        fetch, look = at(found["index"], "fetch_ms", ROWS), at(found["store"], "check_ms", ROWS)
        cost = f"{fetch:.0f} ms to have the rows, {look:.0f} ms to look who has stored them, {per_block:.0f} to compute"
        add("a replica's time that is not computing", cost, fetch + look, per_block)
    if "index" in found:
        kept, peak = (found["index"][max(found["index"], key=int)][f"plan_{name}_mb"] for name in ("kept", "peak"))
        gigabytes = (kept * TEACHERS + peak) * rows_m / 1000
        add("driver's memory of blocks to compute, 16 GB", f"{gigabytes:.1f} GB", gigabytes, 16)
    if "rows" in found:
        for kind, core in (("text-classification", "encode_s"), ("question-answering", "")):
            last = found["rows"][max((k for k in found["rows"] if k.startswith(kind)), key=len)]
            gigabytes = last["load_peak_mb"] * rows_m / 1000
            cost = f"{gigabytes:.1f} GB, {last['load_s'] * rows_m:.0f} s to read"
            cost += f", {last[core] * rows_m / 60:.0f} core-minutes to encode" if core else ""
            add(f"driver's memory while {kind} is read, 16 GB", cost, gigabytes, 16)
    if "store" in found:
        store, size = found["store"], max((k for k in found["store"] if k.isdigit()), key=int)
        one, three = store[f"{size}_1"], store[f"{size}_3"]
        kept = (one["kept_mb"] + (three["kept_mb"] - one["kept_mb"]) / 2 * (TEACHERS - 1)) * rows_m / 1000
        took = (one["open_s"] + (three["open_s"] - one["open_s"]) / 2 * (TEACHERS - 1)) * ROWS / int(size)
        add("a student's memory of its reader, 4 GB a process", f"{kept:.1f} GB", kept, 4)
        add("a student's opening of its reader, of ten minutes", f"{took:.0f} s a trial", took, TRIAL_SECONDS)
        blocks = ROWS * TEACHERS / BLOCK_ROWS
        add("maps of a student, blocks of 1,024 rows", f"{blocks:,.0f} of {MAPS:,}", blocks, MAPS)
        blocks = min(blocks, getattr(pool_module, "MOST_BLOCKS", blocks))
        add("maps of a student, blocks as they are", f"{blocks:,.0f} of {MAPS:,}", blocks, MAPS)
    if "gcs" in found:
        ms = max(found["gcs"][key]["gcs_cpu_ms_per_actor"] for key in found["gcs"] if key.isdigit())
        total = (REPLICAS + AT_ONCE) * ms / 1000
        add("GCS, actors that start within a minute", f"{ms:.0f} ms an actor", total, 60, REPLICAS, "replicas")
        asked = AT_ONCE * TEACHERS / 2
        cost = f"{found['gcs']['directory']['cpu_ms']:.1f} ms a call, {asked:.0f} calls/s"
        used = asked * found["gcs"]["directory"]["cpu_ms"] / 1000
        add("directory of live teachers, one core", cost, used, 1, AT_ONCE, "trials at once")
    for name, got in found.get("mlflow", {}).items():
        if "make_ms" in got:
            each, rate = (got["make_ms"] + got["end_ms"]) / 1000, AT_ONCE / TRIAL_SECONDS
            cost = f"{each:.2f} s a trial of the driver's, {got['points_per_s']:.0f} points/s"
            add(f"MLflow, {name}: driver's waiting", cost, each * rate, 1, AT_ONCE, "trials at once")
            add(f"MLflow, {name}: points", "2,415 a trial", rate * 2415, got["points_per_s"], AT_ONCE, "trials at once")
    return sorted(made, key=lambda row: -row[2])
