"""What bench/peers knows about the machine: its name, its roof, and whether somebody else is using it."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = REPOSITORY / "build" / "release" / "bin"


def describe():
    """Model of the processor, cores, caches, instruction sets that matter here."""
    done = subprocess.run(
        ["lscpu", "--json"], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    fields = {}

    def visit(entries):
        for entry in entries:
            fields[entry["field"].rstrip(":")] = entry.get("data") or ""
            visit(entry.get("children", []))

    visit(json.loads(done.stdout)["lscpu"])
    flags = set(fields.get("Flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
    return {
        "cpu": fields.get("Model name", "unknown"),
        "family": fields.get("CPU family", ""),
        "cpus": int(fields.get("CPU(s)", "0")),
        "l3": fields.get("L3", "") or fields.get("L3 cache", ""),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "flags": [flag for flag in wanted if flag in flags],
    }


def check_peer_is_native(system_info):
    """A line of warning when llama.cpp was not built for this processor's widest instructions, else None."""
    if "avx512f" in describe()["flags"] and "AVX512 = 1" not in system_info:
        return "the peer was built without AVX-512, which this machine has: build it natively (bench/peers/README.md)"
    return None


def roof(threads):
    """GB/s of memory reads by number of threads, of bench/roof.cpp (1 GiB)."""
    program = BUILD / "roof"
    if not program.is_file():
        sys.exit(
            f"machine: no program {program}: build it (cmake --preset release, cmake --build build/release -t roof)"
        )
    counts = ",".join(str(n) for n in sorted({1, threads}))
    done = subprocess.run([str(program), counts], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["rows"]


def better_roof(first, second):
    """The better of two measurements, for each number of threads: others can only make a roof lower."""
    return [max(pair, key=lambda row: row["read_gb_per_s"]) for pair in zip(first, second)]


def _busy_and_total():
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # but for idle and waiting for a disk


def wait_until_idle(limit=0.1, patience_s=60):
    """Waits until others use less than `limit` of the processors, for `patience_s` at most; returns what they use.

    A spinning thread that shares its core with a compiler measures the compiler.
    """
    end = time.monotonic() + patience_s
    while True:
        before = _busy_and_total()
        time.sleep(1)
        after = _busy_and_total()
        share = (after[0] - before[0]) / max(1, after[1] - before[1])
        if share < limit or time.monotonic() > end:
            return round(share, 3)


class Watched:
    """Runs a program and samples what everything but it (the host of a virtual machine included) uses meanwhile."""

    def __init__(self, command):
        self._samples = []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(process.pid, end))
        sampler.start()
        self.stdout, self.stderr = process.communicate()
        end.set()
        sampler.join()
        self.returncode = process.returncode

    def used_by_others(self, last_s=None):
        """Share of the processors, over the last `last_s` seconds of the program or all of its time."""
        if len(self._samples) < 2:
            return 0.0
        last = self._samples[-1]
        inside = [sample for sample in self._samples[:-1] if last_s is None or sample[0] >= last[0] - last_s]
        first = inside[0] if inside else self._samples[-2]
        busy, total, own = (after - before for before, after in zip(first[1:], last[1:]))
        return round(max(0, busy - own) / max(1, total), 3)

    def _sample(self, pid, end):
        while not end.is_set():
            try:
                with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                return
            if fields[0] in "ZX":  # ended: its threads' times are not all here any more
                return
            self._samples.append((time.monotonic(), *_busy_and_total(), int(fields[11]) + int(fields[12])))
            end.wait(0.1)
