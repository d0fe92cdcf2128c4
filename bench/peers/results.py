"""Tables and files of bench/peers: one report (a dict) becomes NAME.json and NAME.md."""

import json
import pathlib


def shown(command):
    """A command as others would type it: files by their names, not by where this machine keeps them."""
    words = [pathlib.Path(word).name if "/" in word else word for word in map(str, command)]
    return " ".join(words)


def write(report, output, markdown):
    if not output:
        return
    base = pathlib.Path(output)
    base = base.with_suffix("") if base.suffix in (".json", ".md") else base
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_name(base.name + ".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    base.with_name(base.name + ".md").write_text(markdown, encoding="utf-8")


def table(header, rows):
    """Markdown that also reads well as plain text: columns of one width."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def speed_table(report):
    rows = []
    for row in report["rows"]:
        spread = (max(row["repeats"]) - min(row["repeats"])) / row["tokens_per_s"]
        decode = row["test"] == "decode"
        rows.append(
            [
                f"decode at {row['depth']:,}" if decode else f"prefill {row['n_tokens']:,}",
                row["engine"],
                row["plan"],
                row["kv"],
                f"{row['tokens_per_s']:.1f}",
                f"{spread:.0%}",
                f"{row['ratio']:.2f}x" if "ratio" in row else "",
                f"{row['kv_bytes'] / 1e6:.1f}",
                f"{row['roof_tokens_per_s']:.0f}" if decode else "",
                f"{row['share_of_roof']:.0%}" if decode else "",
            ]
        )
    return table(
        ["test", "engine", "plan", "cache", "tokens/s", "spread", "ratio", "cache MB", "roof", "of roof"], rows
    )


def head(report, title):
    device = report["device"]
    lines = [
        f"# {title}",
        "",
        f"- date: {report['date']}",
        f"- model: {report['model']}",
        f"- device: {device['cpu']} (family {device['family']}), {device['cpus']} CPUs, L3 {device['l3']}, "
        f"{device['memory_bytes'] / 2**30:.0f} GiB; {' '.join(device['flags'])}; {report['threads']} threads",
    ]
    if "peer" in report:
        lines.append(
            f"- peer: {report['peer']['name']} by {report['peer']['package']}; {report['peer']['system_info']}"
        )
    return lines


def foot(report):
    lines = ["", "Commands:", ""] + [f"    {command}" for command in report["commands"]]
    if report.get("warnings"):
        lines += ["", *(f"**Warning**: {line}." for line in report["warnings"])]
    return lines


def speed_markdown(report):
    lines = head(report, f"Speed of {report['model']}: polyspan and llama.cpp")
    roof = ", ".join(
        f"{row['read_gb_per_s']:.1f} GB/s with {row['threads']} thread{'s' * (row['threads'] > 1)}"
        for row in report["roof"]
    )
    others = report["used_by_others"]
    lines += [
        f"- polyspan: instructions {report['polyspan'].get('isa', 'unknown')}",
        f"- memory reads (bench/roof.cpp, 1 GiB, best repeat): {roof}",
        f"- runs that others disturbed (they used {others['limit_during']:.0%} of the processors or more while it was "
        f"timed, or {others['limit']:.0%} just before a prefill): {others['disturbed_runs']} of "
        f"{len(others['before_each_run'])}; {others['discarded_runs']} more were thrown away and repeated",
        "",
        "Medians of interleaved repeats, a fresh process each; *spread* is (largest - smallest) / median; *ratio* is",
        "to llama.cpp with the same cache elements. *roof* is memory reads / (weights + cache); parts that stay in the",
        "processor's caches can exceed it.",
        "",
        speed_table(report),
    ]
    return "\n".join(lines + foot(report)) + "\n"
