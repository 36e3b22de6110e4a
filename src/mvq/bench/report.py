"""Tables in Markdown, and the plots beside them, from measured rows alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvq.bench.methods import find
from mvq.bench.plot import Curve, draw
from mvq.bench.rows import Row, Rows
from mvq.bench.statistics import Spread, paired, spread
from mvq.bench.study import Study
from mvq.errors import ConfigError


@dataclass(frozen=True)
class _Group:
    """Rows of one network, size and method over the seeds."""

    method: str
    rows: list[Row]

    def values(self, column: str) -> list[float]:
        return [float(row[column]) for row in self.rows if row[column]]

    def spread(self, column: str) -> Spread | None:
        values = self.values(column)
        return spread(values) if values else None


def write_report(study: Study, table: Rows | None = None) -> list[Path]:
    """Write the study's part of its report, its plots, and the README's short table where one is named.

    Args:
        study: whose rows are shown; rows of other setups are left out.
        table: of rows; read from the study's file by default.

    Returns:
        The files written.

    Raises:
        ConfigError: if there is no row to show, or the README lacks the markers.
        MissingDependencyError: without matplotlib.
    """
    table = table or Rows(Path(study.output.rows), list(study.evaluate))
    if not [row for row in table.rows.values() if row["setup"] == study.setup]:
        raise ConfigError(
            f"study {study.name!r}: {study.output.rows} has no row of the study as it is now; "
            "run it without --report-only first"
        )
    report = Path(study.output.report)
    plots = _plots(study, table)
    _put(report, f"bench:{study.name}", render(study, table, _links(plots, report.parent)), create=True)
    written = [report, *(path for pair in plots.values() for path in pair)]
    if study.output.readme is not None:
        readme = Path(study.output.readme)
        _put(readme, "bench", short_table(study, table), create=False)
        written.append(readme)
    return written


def render(study: Study, table: Rows, images: dict[str, str] | None = None) -> str:
    """The study's section: settings, one table a network and size, what failed, and the sources."""
    budget, lines = study.budget, [f"## {study.title}", ""]
    if study.about:
        lines += [study.about, ""]
    lines += [
        f"Every method gets {budget.n_steps:,} steps of {budget.batch_size} images; those that train with masks spend "
        f"{budget.steps(sparse=True)[0]:,} of them on it. Mean ± standard deviation over seeds. Δ is against "
        f"`{study.reference}` on the same images and seeds: ± standard error over images, p of the exact McNemar test. "
        "Bytes and ratio are those of the compressed layers; time is of compression, fine-tuning and evaluation, "
        "without the sparse training that methods share, on the hardware in brackets if that is known. "
        "All rows are measured.",
        "",
    ]
    for network in study.networks:
        if not _rows(study, table, network.name):
            continue
        lines += [f"### {network.name}", "", _dense_line(study, table, network.name), ""]
        if images and network.name in images:
            lines += [f"![accuracy against bytes]({images[network.name]})", ""]
        for size in study.sizes:
            groups = _groups(study, table, network.name, size.ratio)
            if groups:
                lines += [f"**{size.ratio:g}x** ({size.pattern}, d = {size.d} where masks are used)", ""]
                lines += [*_table(study, table, groups), ""]
            if size.without:
                names = ", ".join(find(name).label for name in size.without)
                lines += [f"Cannot be so small: {names}.", ""]
        lines += _ablation(study, table, network.name)
    return "\n".join([*lines, *_failures(study, table), *_sources(study)]).rstrip()


def short_table(study: Study, table: Rows) -> str:
    """Mean accuracy on the main evaluation set, methods by sizes, for each network."""
    main = next(iter(study.evaluate))
    places = [(network.name, size.ratio) for network in study.networks for size in study.sizes]
    heads = [place for place in places if _groups(study, table, *place)]
    lines = ["| method | " + " | ".join(f"{name} {ratio:g}x" for name, ratio in heads) + " |"]
    lines.append("|---|" + "---|" * len(heads))
    by_place = {head: {g.method: g for g in _groups(study, table, *head)} for head in heads}
    for name in study.methods:
        method = find(name)
        groups = [by_place[head].get(method.name) for head in heads]
        if any(groups):
            cells = ["" if group is None else _accuracy(group.spread(f"{main}_percent")) for group in groups]
            lines.append(f"| {method.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rows(study: Study, table: Rows, network: str) -> list[Row]:
    """Measured rows of a network in this setup."""
    seeds = {str(seed) for seed in study.seeds}
    return [
        row
        for row in table.rows.values()
        if row["setup"] == study.setup and row["network"] == network and row["seed"] in seeds
    ]


def _groups(study: Study, table: Rows, network: str, ratio: float) -> list[_Group]:
    rows = [r for r in _rows(study, table, network) if not r["error"] and float(r["size_ratio"]) == ratio]
    names = [find(name).name for name in study.methods]
    groups = [_Group(name, [row for row in rows if row["method"] == name]) for name in names]
    return [group for group in groups if group.rows]


def _table(study: Study, table: Rows, groups: Sequence[_Group]) -> list[str]:
    reference = next((g for g in groups if g.method == study.reference), None)
    sets = list(study.evaluate)
    heads = ["method", *(h for s in sets for h in (f"{s} %", f"Δ {s} (p)")), f"{sets[0]} before %", "agreement %"]
    heads += ["pattern, d, k", "bytes", "ratio", "model bytes", "MACs", "time s", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
    for group in groups:
        first = group.rows[0]
        cells = [_label(study, group.method)]
        for name in sets:
            cells += [_accuracy(group.spread(f"{name}_percent")), _paired(table, group, reference, name)]
        cells += [_mean(group, f"{sets[0]}_before_percent", 2), _mean(group, f"{sets[0]}_agreement_percent", 1)]
        cells.append(", ".join(v for v in (first["pattern"], first["d"], first["n_codewords"]) if v))
        cells += [_mean(group, "bytes", 0), _mean(group, "ratio", 2), _mean(group, "model_bytes", 0)]
        cells += [_mean(group, "macs_executed", 0), _time(group), str(len(group.rows))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ablation(study: Study, table: Rows, network: str) -> list[str]:
    """What clustering alone does to the weights each method starts from, for those where that can be compared."""
    methods = {method.name for method in map(find, study.methods) if method.clusters}
    lines = []
    for size in study.sizes:
        for group in _groups(study, table, network, size.ratio):
            if group.method in methods and group.values("important_sse"):
                cells = [f"{size.ratio:g}x", _label(study, group.method)]
                cells += [_mean(group, column, 1) for column in ("important_sse", "total_sse")]
                cells += [_mean(group, f"{next(iter(study.evaluate))}_{when}percent", 2) for when in ("before_", "")]
                lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return []
    about = (
        "Squared error right after clustering, against the weights that were clustered (dense, or trained with masks): "
        "over the important ones, which the N:M mask of their magnitudes keeps, and over all. Before and after "
        "fine-tuning."
    )
    head = "| size | method | error, important | error, all | before % | after % |"
    return ["**Ablation**", "", about, "", head, "|---|---|---|---|---|---|", *lines, ""]


def _paired(table: Rows, group: _Group, reference: _Group | None, name: str) -> str:
    if reference is None or group is reference:
        return ""
    found = paired(table, group.rows, reference.rows, name)
    return "" if found is None else f"{found.difference:+.2f} ± {found.standard_error:.2f} ({_p(found.p_value)})"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _accuracy(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.2f}" if found.n == 1 else f"{found.mean:.2f} ± {found.deviation:.2f}"


def _mean(group: _Group, column: str, digits: int) -> str:
    found = group.spread(column)
    return "" if found is None else f"{found.mean:,.{digits}f}"


def _time(group: _Group) -> str:
    """Mean seconds, each kind of hardware apart."""
    kinds = {row["hardware"]: None for row in group.rows if row["seconds"]}
    means = [
        (_mean(_Group(group.method, [row for row in group.rows if row["hardware"] == kind]), "seconds", 0), kind)
        for kind in kinds
    ]
    return "; ".join(f"{mean} ({kind})" if kind else mean for mean, kind in means)


def _label(study: Study, name: str) -> str:
    return next(method.label for method in map(find, study.methods) if method.name == name)


def _dense_line(study: Study, table: Rows, network: str) -> str:
    row = next((r for r in _rows(study, table, network) if not r["error"]), None)
    if row is None:
        return "No row was measured."
    values = [f"{float(row[f'{s}_dense_percent']):.2f}% on {s} ({int(row[f'{s}_n']):,} images)" for s in study.evaluate]
    return f"Dense: {', '.join(values)}; {int(row['n_weights']):,} weights are compressed; metric {row['metric']}."


def _failures(study: Study, table: Rows) -> list[str]:
    asked = {(size.ratio, find(m).name) for size in study.sizes for m in study.methods if m not in size.without}
    rows = [
        row
        for network in study.networks
        for row in _rows(study, table, network.name)
        if row["error"] and (float(row["size_ratio"]), row["method"]) in asked
    ]
    if not rows:
        return []
    lines = [
        f"* {r['network']} {float(r['size_ratio']):g}x {r['method']}, seed {r['seed']}: {r['error']}" for r in rows
    ]
    return ["Rows without a result:", "", *lines, ""]


def _sources(study: Study) -> list[str]:
    methods = [find(name) for name in study.methods]
    return ["Methods:", "", *(f"* {m.label}: {m.source}" for m in methods)]


def _plots(study: Study, table: Rows) -> dict[str, tuple[Path, Path]]:
    """The plot of each network that has rows, as SVG and PNG."""
    plots = {}
    for network in study.networks:
        rows = [row for row in _rows(study, table, network.name) if not row["error"]]
        if not rows:
            continue
        panels = {}
        for name in study.evaluate:
            curves = [_curve(study, table, network.name, find(m).name, name) for m in study.methods]
            panels[f"{name}, {int(rows[0][f'{name}_n']):,} images"] = (
                [curve for curve in curves if curve.bytes],
                float(rows[0][f"{name}_dense_percent"]),
            )
        stem = Path(study.output.images) / f"accuracy-{study.name}-{network.name}"
        plots[network.name] = draw(panels, stem, title=network.name, metric=rows[0]["metric"])
    return plots


def _curve(study: Study, table: Rows, network: str, method: str, name: str) -> Curve:
    points = []
    for size in study.sizes:
        for group in _groups(study, table, network, size.ratio):
            found, size_bytes = group.spread(f"{name}_percent"), group.spread("model_bytes")
            if group.method == method and found is not None and size_bytes is not None:
                points.append((size_bytes.mean, found.mean, 0.0 if found.n == 1 else found.deviation))
    points.sort()
    return Curve(_label(study, method), *(tuple(p[i] for p in points) for i in range(3)))


def _links(plots: dict[str, tuple[Path, Path]], folder: Path) -> dict[str, str]:
    return {name: Path(os.path.relpath(svg, folder)).as_posix() for name, (svg, _) in plots.items()}


def _put(path: Path, marker: str, text: str, *, create: bool) -> None:
    """Replace what stands between the markers; `create` adds them at the end of a file without them."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin not in old or end not in old:
        if not create:
            raise ConfigError(f"{path}: there is no {begin} ... {end}; put both lines where the table shall stand")
        old = (f"{old.rstrip()}\n\n" if old else "# Results\n\n") + f"{begin}\n{end}\n"
    head, tail = old[: old.index(begin)], old[old.index(end) + len(end) :]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")
    partial.replace(path)
