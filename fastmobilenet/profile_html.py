"""A Profile as a page of HTML that needs nothing else: no script, no file, no network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .roofline import BOUNDS

if TYPE_CHECKING:
    from .profile import Layer, Profile

#: Colours of the bounds in the order of BOUNDS, on light and on dark ground: apart for colour-blind eyes too, and
#: each at least 3 : 1 to its ground.
LIGHT = ("#2a6fdb", "#00806a", "#c05a00", "#a3369e", "#6b7280")
DARK = ("#6aa5ff", "#35c2a0", "#f0994a", "#d98ad6", "#9aa3b2")

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1f24; --muted: #59626d; --line: #dfe3e8; --mark: #000;
  %s }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --text: #e6e9ed; --muted: #9aa4af; --line: #2c323a; --mark: #fff; %s } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 96rem; background: var(--ground); color: var(--text);
  font: 0.9rem/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.35rem; }
p { margin: .25rem 0; max-width: 60rem; }
.muted { color: var(--muted); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 1rem 0; padding: 0; list-style: none; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; }
td.layer { width: 36%%; min-width: 20rem; white-space: normal; overflow-wrap: break-word; }
td.layer small { display: block; color: var(--muted); }
td.time { width: 26%%; min-width: 12rem; }
.bar { position: relative; height: 1.05rem; }
.bar i { position: absolute; top: 0; left: 0; bottom: 0; border-radius: 0 3px 3px 0; }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--mark); }
.tick { display: inline-block; width: 2px; height: 1.1em; margin-right: .5em; vertical-align: text-bottom;
  background: var(--mark); }
tfoot td { border-bottom: none; font-weight: 600; }
%s
"""

NOTE = """The bars are the times of the layers in the fastest run as a whole; with the call around them they add up to
its time. The mark on a bar is the least time by the bound that applies: for each resource the time is taken that the
layer would need if it were alone, and the largest counts. Maps are what the layer reads and writes, those between fused
nodes left out. A layer may be faster than its mark where the one before it has fetched its weights."""

HEADER = """<tr><th class="text">layer</th><th>output</th><th class="text">time</th><th>ms</th><th>time %</th>
<th>GFLOP/s</th><th>peak %</th><th>maps KB</th><th>weights KB</th><th class="text">bound</th><th>bound %</th></tr>"""


def page(profile: Profile) -> str:
    """The whole page, as text to be encoded in UTF-8."""
    title, speed = map(escape, profile.heading())
    measured = escape(profile.summary()[1])
    scale = max(max(layer.seconds, layer.bound_seconds) for layer in profile.layers) or 1.0
    rows = "\n".join(_row(profile, layer, scale) for layer in profile.layers)
    style = STYLE % (_variables(LIGHT), _variables(DARK), _classes())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(profile.model)}: where the time goes</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{speed}</p>
<p class="muted">{measured}</p>
{_legend(profile)}
<div class="scroll">
<table>
<thead>{HEADER}</thead>
<tbody>
{rows}
</tbody>
<tfoot>
{_foot(profile)}
</tfoot>
</table>
</div>
<p class="muted">{NOTE}</p>
</body>
</html>
"""


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--{bound}: {colour};" for bound, colour in zip(BOUNDS, colours, strict=True))


def _classes() -> str:
    return "\n".join(f".{bound} {{ background: var(--{bound}); }}" for bound in BOUNDS)


def _legend(profile: Profile) -> str:
    items = "".join(
        f'<li><span class="swatch {bound}"></span>{BOUNDS[bound]} {100 * seconds / profile.seconds:.1f} %</li>'
        for bound, seconds in profile.by_bound().items()
    )
    return f'<ul class="legend">{items}<li><span class="tick"></span>least time by the bound</li></ul>'


def _row(profile: Profile, layer: Layer, scale: float) -> str:
    work = layer.work
    rate, share = (f"{layer.gflops:.1f}", f"{100 * profile.share_of_peak(layer):.0f}") if work.macs else ("", "")
    weights = f"{work.weight_bytes / 1024:.1f}" if work.weight_bytes else ""
    width, mark = (100 * seconds / scale for seconds in (layer.seconds, layer.bound_seconds))
    bar = f'<i class="{layer.bound}" style="width:{width:.2f}%"></i><b style="left:calc({mark:.2f}% - 1px)"></b>'
    name = escape(layer.name).replace("/", "/<wbr>")
    return (
        f'<tr><td class="text layer">{name}<small>{escape(layer.kernel)}</small></td>'
        f"<td>{'&times;'.join(map(str, layer.output))}</td>"
        f'<td class="time"><div class="bar">{bar}</div></td>'
        f"<td>{1e3 * layer.seconds:.3f}</td><td>{100 * layer.seconds / profile.seconds:.1f}</td>"
        f"<td>{rate}</td><td>{share}</td><td>{layer.map_bytes / 1024:.1f}</td><td>{weights}</td>"
        f'<td class="text">{BOUNDS[layer.bound]}</td><td>{100 * layer.share_of_bound:.0f}</td></tr>'
    )


def _foot(profile: Profile) -> str:
    weights = sum(layer.work.weight_bytes for layer in profile.layers) / 1024
    outside = 100 * profile.outside / profile.seconds
    return (
        f'<tr><td class="text">the call around the layers</td><td></td><td></td>'
        f"<td>{1e3 * profile.outside:.3f}</td><td>{outside:.1f}</td>{'<td></td>' * 6}</tr>\n"
        f'<tr><td class="text">total</td><td></td><td></td><td>{1e3 * profile.seconds:.3f}</td><td>100.0</td>'
        f"<td>{profile.gflops:.1f}</td><td>{100 * profile.share_of_peak():.0f}</td><td></td><td>{weights:.1f}</td>"
        f"<td></td><td>{100 * profile.bound_seconds / profile.seconds:.0f}</td></tr>"
    )
