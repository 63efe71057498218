"""A run on one page: ``report.html``, made from the files of its folder and from nothing else.

The page stands alone: no network, no script; figures and videos are inside it. What the run has not made yet
is named as such, so a report can be written at any moment. Everything that comes from a file is escaped.
"""

from __future__ import annotations

import base64
import html
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reverie import plot
from reverie.media import atomic
from reverie.reproduce.runs import Row, read_config, read_json, read_metrics, series

LARGEST = 12_000_000  # bytes of a video that still goes into the page
ROWS = 12  # of the evaluation table


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder from whatever is there; returns its path."""
    path = Path(run_dir) / "report.html"
    text = render(Path(run_dir))
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")
    return path


def render(folder: Path) -> str:
    """The page as HTML."""
    config, rows, evaluation = (
        read_config(folder),
        read_metrics(folder),
        read_json(folder / "evaluation.json"),
    )
    agent, env = _text(config.get("agent"), "agent"), _text(config.get("env"), "environment")
    parts = [
        _head(agent, env, folder, config),
        _result(rows, evaluation, config),
        _section(
            "Learning", _learning(rows, evaluation), "Return of whole episodes without exploration noise."
        ),
        _section("What it dreams, and what it does", _videos(folder)),
        _section(
            "Losses", _losses(rows), "Averages between two lines of the log; each panel has its own scale."
        ),
        _section("Evaluations", _evaluations(rows)),
        _section("Speed", _speed(rows)),
        _section("Go on", _command(folder, config)),
        _section("Every setting", _settings(config)),
    ]
    title = html.escape(f"{agent} on {env}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


# The sections, from top to bottom


def _head(agent: str, env: str, folder: Path, config: Mapping[str, Any]) -> str:
    run = _mapping(config.get("run"))
    named = ", ".join(_names(config))
    seed = run.get("seed", config.get("seed"))
    facts = [f"preset {named}" if named else "", "" if seed is None else f"seed {seed}", _date(folder)]
    line = " · ".join(html.escape(fact) for fact in facts if fact)
    return (
        f'<header><p class="brand">reverie</p>'
        f"<h1>{html.escape(agent)} <span>on</span> {html.escape(env)}</h1>"
        f'<p class="facts">{line}</p></header>'
    )


def _result(rows: Sequence[Row], evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    mean, std = _number(evaluation.get("mean")), _number(evaluation.get("std"))
    chance = _number((evaluation.get("random") or {}).get("mean"))
    steps = _number(evaluation.get("env_steps")) or _last(rows, "env_steps")
    episodes = evaluation.get("returns")
    if mean is None:
        _, returns = series(rows, "eval/return")
        mean = float(returns[-1]) if len(returns) else None
    if mean is None:
        sentence = "No evaluation yet: the result stands here when the run has made one."
    else:
        after = f"After {steps:,.0f} env steps the" if steps else "The"
        spread = f" ± {_short(std)}" if std is not None else ""
        over = f" over {len(episodes)} episodes" if isinstance(episodes, list) and episodes else ""
        sentence = f"{after} agent earns <b>{_short(mean)}</b>{spread} an episode{over}"
        if chance is None:
            sentence += "; the random policy has not been evaluated yet."
        else:
            word = "more" if mean > chance else "less"
            sentence += (
                f", {_short(abs(mean - chance))} {word} than the random policy, which earns {_short(chance)}."
            )
    planned = _number(_mapping(config.get("config")).get("steps"))
    if planned and steps is not None and steps < planned:
        sentence += f" The run is at {steps / planned:.0%} of its {planned:,.0f} env steps."
    return f'<p class="result">{sentence}</p>'


def _learning(rows: Sequence[Row], evaluation: Mapping[str, Any]) -> str:
    """Evaluations over env steps beside training episodes, or over generations beside the population's mean."""
    evolved = any("generation" in row for row in rows)
    against = "generation" if evolved else "env_steps"
    x, y = series(rows, "eval/return", against)
    raw_x, raw_y = series(rows, "c/mean" if evolved else "episode/return", against)
    if not len(x) and not len(raw_x):
        return _missing("The learning curve")
    chance = _number((evaluation.get("random") or {}).get("mean"))
    with plot.style():
        figure = Figure(figsize=(8.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        if len(raw_x):
            axes.plot(raw_x, raw_y, color=plot.COLOURS[0], lw=0.9, alpha=0.35)
        arms = {"evaluation": [plot.Curve(x, y)]} if len(x) else {"training": [plot.Curve(raw_x, raw_y)]}
        plot.draw(axes, arms, random=chance)
        axes.set_ylabel("return")
        if evolved:
            axes.set_xlabel("generations")
        if len(x) and len(raw_x):
            thin = "the population's mean, where it is evolved" if evolved else "training episodes, exploring"
            axes.set_title(f"Thin: {thin}", fontsize=8.5, fontweight="normal", color=plot.QUIET)
        return _image(figure, "learning curve")


def _losses(rows: Sequence[Row]) -> str:
    names = sorted({key for row in rows for key in row if isinstance(key, str) and key.startswith("loss/")})
    against = "updates" if any("generation" in row for row in rows) else "env_steps"
    found = [(name, *series(rows, name, against)) for name in names]
    found = [entry for entry in found if len(entry[1])]
    if not found:
        return _missing("The figure of the losses")
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    with plot.style():
        figure = Figure(figsize=(8.2, 1.9 * lines), layout="constrained")
        for i, (name, x, y) in enumerate(found):
            axes = figure.add_subplot(lines, columns, i + 1)
            axes.plot(x, y, color=plot.COLOURS[0], lw=1.4, marker="o" if len(x) == 1 else "", ms=3)
            axes.set_title(name.removeprefix("loss/"), fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: plot.steps(v)))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelsize=8)
        return _image(figure, f"losses over {against.replace('_', ' ')}")


def _videos(folder: Path) -> str:
    videos = sorted((folder / "videos").glob("*.gif"))
    acts = [path for path in videos if any(word in path.name for word in ("episode", "eval"))]
    dreams = [path for path in videos if path not in acts]
    told = (
        "Rows from above: what happened, where there are four what the model makes of it when it is shown, what it "
        "says, the error around grey. The bar turns orange where the model stops looking."
    )
    errors = folder / "videos" / "prediction_error.png"
    foresight = ""
    if errors.exists():
        foresight = _figures([errors], "", "How far the model sees, and how far it believes to see.")
    films = _figures(dreams, "The open-loop dream video", told) if dreams or not foresight else ""
    return foresight + films + _figures(acts, "The video of an episode", "An episode of the evaluation.")


def _figures(paths: Sequence[Path], what: str, caption: str) -> str:
    if not paths:
        return _missing(what)
    made = ""
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError:
            made += _missing(f"{path.name}, which could not be read: it")
            continue
        if len(data) > LARGEST:
            made += f'<p class="missing">{html.escape(path.name)} is too large for a page; see videos/.</p>'
            continue
        name = html.escape(path.stem.replace("_", " "))
        made += (
            f'<figure><img class="film" alt="{name}" src="{_data(f"image/{path.suffix[1:]}", data)}">'
            f"<figcaption><b>{name}.</b> {html.escape(caption)}</figcaption></figure>"
        )
    return made


def _evaluations(rows: Sequence[Row]) -> str:
    lines = [row for row in rows if _number(row.get("eval/return")) is not None]
    if not lines:
        return _missing("The table of evaluations")
    shown = lines[-ROWS:]
    left = f'<p class="note">The last {ROWS} of {len(lines)}.</p>' if len(lines) > ROWS else ""
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                _whole(row.get("env_steps")),
                _whole(row.get("updates")),
                _clock(_number(row.get("seconds"))),
                f"<b>{_short(_number(row.get('eval/return')))}</b>",
                _short(_number(row.get("eval/std"))),
                _short(_number(row.get("eval/length"))),
            )
        )
        + "</tr>"
        for row in shown
    )
    head = "".join(
        f"<th>{name}</th>" for name in ("env steps", "updates", "time", "return", "std", "decisions")
    )
    return f"{left}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _speed(rows: Sequence[Row]) -> str:
    seconds, steps, updates = (_last(rows, key) for key in ("seconds", "env_steps", "updates"))
    if not seconds or steps is None:
        return _missing("The speed")
    tiles = [
        ("wall-clock, all in all", _clock(seconds)),
        ("env steps a second", _short(steps / seconds)),
        ("updates a second", _short(None if updates is None else updates / seconds)),
        ("env steps", _whole(steps)),
        ("updates", _whole(updates)),
    ]
    made = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in tiles)
    return f'<div class="tiles">{made}</div><p class="note">Evaluations and pauses for saving are in it.</p>'


def _command(folder: Path, config: Mapping[str, Any]) -> str:
    if not config.get("agent") or not config.get("env"):
        return _missing("config.yaml, from which the command is made,")
    return (
        '<p class="note">The same command with the same folder goes on where the run stopped.</p>'
        f"<pre>{html.escape(command(folder, config))}</pre>"
    )


def command(folder: Path, config: Mapping[str, Any]) -> str:
    """The command line that goes on with a run: agent, task, presets, and what differs from them."""
    from reverie import presets
    from reverie.run.loop import RunConfig
    from reverie.types import ReverieError

    agent, names = str(config["agent"]), _names(config)
    words = ["reverie", "train", agent, "--env", str(config["env"])]
    words += ["--preset", *names] if names else []
    settings: dict[str, Any] = {}
    try:
        settings |= vars(presets.resolve(agent, names))
        settings |= vars(RunConfig())
    except ReverieError:
        pass  # an agent or preset of another version: its settings cannot be told from its own
    asked = {**_mapping(config.get("config")), **_mapping(config.get("run"))}
    for name, value in asked.items():
        if name not in settings or settings[name] == value or value is None:
            continue
        flag = name.replace("_", "-")
        words += [f"--no-{flag}" if value is False else f"--{flag}"]
        words += [] if isinstance(value, bool) else [str(value)]
    return shlex.join([*words, "--run", str(folder)])


def _settings(config: Mapping[str, Any]) -> str:
    if not config:
        return _missing("config.yaml")
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return f"<details><summary>config.yaml</summary><pre>{html.escape(text)}</pre></details>"


# Small pieces


def _section(title: str, body: str, note: str = "") -> str:
    told = f'<p class="note">{note}</p>' if note and 'class="missing"' not in body[:20] else ""
    return f"<section><h2>{title}</h2>{told}{body}</section>"


def _missing(what: str) -> str:
    return f'<p class="missing">{html.escape(what)} is not made yet.</p>'


def _image(figure: Figure, alt: str) -> str:
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f'<img class="figure" alt="{html.escape(alt)}" src="{_data("image/svg+xml", file.getvalue())}">'


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _date(folder: Path) -> str:
    for name in ("config.yaml", "metrics.jsonl"):
        path = folder / name
        if path.exists():
            return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%-d %B %Y")
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(config: Mapping[str, Any]) -> list[str]:
    presets = config.get("presets")
    return [str(name) for name in presets] if isinstance(presets, list | tuple) else []


def _text(value: Any, otherwise: str) -> str:
    return str(value) if isinstance(value, str | int | float) else f"unknown {otherwise}"


def _number(value: Any) -> float | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else None


def _last(rows: Sequence[Row], key: str) -> float | None:
    return next((n for row in reversed(rows) if (n := _number(row.get(key))) is not None), None)


def _short(value: float | None) -> str:
    """A number as one says it: 812, 45.3, 0.271."""
    if value is None:
        return "–"
    size = float(abs(value))
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or not size else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def _whole(value: Any) -> str:
    number = _number(value)
    return "–" if number is None else f"{number:,.0f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


STYLE = """
:root{--ink:#202124;--soft:#5f6368;--line:#e8eaed;--ground:#fafafa;--accent:#0072b2}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);line-height:1.55;
 font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:16px}
main{max-width:880px;margin:0 auto;padding:56px 28px 80px}
.brand{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em}
h1{margin:.1em 0 .15em;font-size:2.1rem;line-height:1.2;font-weight:650;overflow-wrap:anywhere}
h1 span{color:var(--soft);font-weight:400}
.facts,.note,figcaption{color:var(--soft);font-size:.9rem}
.facts{margin:0}
.note{margin:-.4em 0 .9em}
.result{margin:28px 0 12px;padding:22px 26px;background:#fff;border:1px solid var(--line);
 border-left:4px solid var(--accent);border-radius:10px;font-size:1.2rem}
.result b{color:var(--accent)}
section{margin-top:44px}
h2{margin:0 0 .6em;font-size:1.15rem;font-weight:650}
.figure{display:block;width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:10px;
 padding:14px}
figure{margin:0 0 22px}
.film{display:block;max-width:100%;min-width:min(320px,100%);height:auto;image-rendering:pixelated;
 border:1px solid var(--line);border-radius:10px;background:#fff}
figcaption{margin-top:8px;max-width:60ch}
table{width:100%;border-collapse:collapse;background:#fff;border:1px solid var(--line);border-radius:10px;
 font-variant-numeric:tabular-nums;font-size:.95rem}
th,td{padding:9px 16px;text-align:right;border-bottom:1px solid var(--line)}
tbody tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:500}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin-bottom:16px}
.tiles div{background:#fff;border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles b{display:block;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.85rem}
pre{margin:0;padding:16px 18px;background:#fff;border:1px solid var(--line);border-radius:10px;
 overflow-x:auto;font:0.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details pre{margin-top:12px}
summary{cursor:pointer;color:var(--accent)}
.missing{margin:0 0 12px;padding:14px 18px;border:1px dashed #dadce0;border-radius:10px;color:var(--soft)}
@media print{body{background:#fff}main{max-width:none;padding:0}}
"""
