"""The page's style sheet: one set of colours for light, one for dark, light again on paper."""

from __future__ import annotations

#: Colours of categories and of numbers, on light and on dark, as `charts` names them; those of no value come first.
_LIGHT = {
    "none": "#b4bec9",
    "c": "#1770f9 #a51105 #3cc96a #8901a1 #898b48 #cd6aaf #102c5a #5c0012",
    "v": "#440154 #481c6e #453581 #3e4c8a #34618d #2c738e #24868e #1f988b #25ab82 #3dbc74 #65cb5e #95d840",
}
_DARK = {
    "none": "#4d5b6a",
    "c": "#6ff8f0 #fc4734 #d9ff17 #d866f1 #339c6d #f6b669 #9537cb #a63c0c",
    "v": "#3c4f8a #33628d #2c728e #25838e #1f948c #20a486 #31b57b #50c46a #75d054 #a2da37 #d2e21b #fde725",
}


def _declared(colours: dict[str, str]) -> str:
    """Colours as properties: those of a series have numbers behind its letter."""
    told = {name: values.split() for name, values in colours.items()}
    return " ".join(f"--{name}{k if len(all_) > 1 else ''}: {one};" for name, all_ in told.items() for k, one in enumerate(all_))


_PALETTES = f"""
:root {{ {_declared(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_declared(_DARK)} }} }}
@media print {{ :root {{ {_declared(_LIGHT)} }} }}
"""

_PAGE = """
:root {
  --page: #eef1f4; --sheet: #ffffff; --ink: #16212e; --soft: #566373; --line: #dbe1e8; --track: #e6eaef;
  --s1: #1f6fb2; --s2: #c2601c; --s3: #5b4fa8; --s4: #a23b72; --s5: #3c7d7a; --s6: #8a7a2c;
  --good: #1d7a4f; --bad: #b3261e; --warn: #96640a; --bad-tint: #fbe9e7; --warn-tint: #fdf3df; --code: #f3f5f8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1218; --sheet: #151c25; --ink: #e4eaf1; --soft: #9aa8b7; --line: #2a3542; --track: #28323e;
    --s1: #62aeea; --s2: #ee9a58; --s3: #a69af0; --s4: #e583b4; --s5: #6cc0ba; --s6: #cdbb5e;
    --good: #54c28b; --bad: #f2837a; --warn: #e2b04f; --bad-tint: #341b1b; --warn-tint: #32270f; --code: #1c2531;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); font-size: 15px; line-height: 1.5;
  font-family: "Inter", "Segoe UI", "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main {
  max-width: 1160px; margin: 32px auto; padding: 44px 50px 56px; background: var(--sheet); border: 1px solid
  var(--line); border-radius: 6px;
}
h1, h2, h3, p, ul, dl, dd, figure, pre { margin: 0; padding: 0; }
h1 { font-size: 38px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 700; overflow-wrap: anywhere; }
h2 { font-size: 22px; line-height: 1.25; letter-spacing: -0.01em; margin-bottom: 4px; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); }
section { margin-top: 44px; }
.lead { color: var(--soft); max-width: 96ch; margin-bottom: 18px; }
code, pre, .formula {
  font-family: "JetBrains Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono",
  monospace; font-size: 13px;
}
code { background: var(--code); padding: 2px 6px; border-radius: 4px; overflow-wrap: anywhere; }

header { display: flex; justify-content: space-between; align-items: center; gap: 32px; }
.title { min-width: 0; }
.eyebrow { color: var(--s1); font-weight: 600; margin-bottom: 6px; }
.facts-line { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; margin-top: 14px; color: var(--soft); }
.badge {
  display: inline-block; padding: 1px 11px 2px; border-radius: 999px; font-size: 13px; font-weight: 600;
  border: 1.5px solid currentColor;
}
.badge.good { color: var(--good); }
.badge.bad { color: var(--bad); }
.badge.warn { color: var(--warn); }
.badge.plain { color: var(--soft); }
.sealed { flex: none; text-align: center; color: var(--soft); font-size: 13px; }
.seal { width: 132px; height: 132px; display: block; margin: 0 auto 4px; }

.intro { margin-top: 20px; max-width: 96ch; font-size: 16.5px; overflow-wrap: anywhere; }
.banner {
  margin-top: 26px; padding: 16px 20px; border-radius: 6px; display: grid; gap: 8px; overflow-wrap: anywhere;
  white-space: pre-line;
}
.banner.bad { background: var(--bad-tint); } .banner.waiting { background: var(--warn-tint); }
.banner.bad strong { color: var(--bad); } .banner.waiting strong { color: var(--warn); }
.command { background: var(--sheet); border: 1px solid var(--line); white-space: nowrap; user-select: all; }

.tiles {
  display: flex; flex-wrap: wrap; gap: 1px; background: var(--line); border: 1px solid var(--line);
  border-radius: 6px; overflow: hidden; margin-top: 28px;
}
.of-3 { --basis: 31%; } .of-4 { --basis: 23%; } .of-5 { --basis: 18.5%; }
.tile { flex: 1 1 var(--basis); min-width: 196px; background: var(--sheet); padding: 15px 18px 17px; }
.meter { margin-top: 8px; } .meter .bar { height: 5px; }
.tile .value { font-size: 25px; font-weight: 650; line-height: 1.25; letter-spacing: -0.015em; overflow-wrap: anywhere; }
.tile .below { color: var(--soft); font-size: 13px; }

.checks { border-top: 1px solid var(--line); }
.check {
  display: grid; grid-template-columns: 86px minmax(0, 1fr) 330px; gap: 8px 22px; align-items: center;
  padding: 15px 0; border-bottom: 1px solid var(--line);
}
.formula { color: var(--soft); margin-top: 4px; overflow-wrap: anywhere; }
.gauge { display: grid; grid-template-columns: auto auto; align-items: baseline; font-size: 13px; }
.gauge { margin: 0 2px; } .gauge .margin { text-align: right; }
.gauge .scaled { grid-column: 1 / -1; } .margin { color: var(--soft); }

.bar { position: relative; height: 10px; border-radius: 5px; background: var(--track); }
.bar i { position: absolute; top: 0; bottom: 0; border-radius: inherit; }
.bar .good { background: var(--good); } .bar .bad { background: var(--bad); } .bar .beyond { opacity: 0.22; }
.bar b { position: absolute; top: -5px; bottom: -5px; width: 1.5px; margin-left: -0.75px; background: var(--ink); }
.bar span { position: absolute; top: 16px; transform: translateX(-50%); font-size: 11.5px; color: var(--soft); line-height: 1.2; }
.scaled { padding: 10px 0 24px; } .ratio .bar { width: 132px; height: 8px; margin: 0 auto; }

.chart { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.chart text { font-family: inherit !important; }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); }
.solid { background: var(--c); }
.wide { overflow-x: auto; } .wide .chart { min-width: 760px; }
.legend { color: var(--soft); font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 8px 0 16px; }
.key { display: inline-flex; align-items: center; gap: 7px; }
.key i { width: 12px; height: 12px; border-radius: 2px; }
.key i.limit-key { height: 0; width: 20px; border-top: 1.6px dashed var(--ink); border-radius: 0; }
.key i.line-key { height: 0; width: 20px; border-top: 2px solid var(--s4); border-radius: 0; }
.key.shades { gap: 0; } .key.shades i { width: 15px; border-radius: 0; } .key.shades span { margin: 0 7px; }
.key i.diamond-key { background: var(--s5); transform: rotate(45deg) scale(0.75); border-radius: 0; }

.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 22px 40px; }
.pictures { display: grid; grid-template-columns: repeat(8, 1fr); gap: 16px 12px; }
.pictures img { width: 100%; display: block; image-rendering: pixelated; border-radius: 3px; border: 1px solid var(--line); }
.triangle img { width: 232px; display: block; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { font-size: 13px; color: var(--soft); margin-top: 4px; display: flex; justify-content: space-between; gap: 8px; }
.sealed figcaption { display: block; margin: 0; } figcaption b { color: var(--ink); }

table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td {
  text-align: right; padding: 7px 0 7px 18px; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: middle;
}
th:first-child { text-align: left; padding-left: 0; font-weight: 500; }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: pre; }
.planned td:last-child, .planned th:last-child { width: 176px; text-align: center; }
.passes td:last-child, .passes th:last-child { padding-left: 34px; text-align: left; }
.events td, .events th { text-align: left; white-space: normal; } .events th:first-child { white-space: nowrap; }

.asked { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 34px; margin-top: 12px; }
.asked pre { align-self: start; }
.words { display: grid; gap: 12px; align-content: start; overflow-wrap: anywhere; }
.asked ul, .notes { padding-left: 20px; display: grid; gap: 5px; }
.notes { margin-top: 12px; } .notes .warn::marker { color: var(--warn); } .notes .warn { color: var(--warn); font-weight: 600; }
pre {
  background: var(--code); padding: 14px 18px; border-radius: 6px; white-space: pre-wrap; overflow-wrap:
  anywhere; line-height: 1.55;
}
details { margin-top: 14px; } summary { cursor: pointer; font-weight: 600; } details .wide { margin-top: 10px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 24px 44px; margin-top: 12px; }
.facts h3 { margin-bottom: 6px; }
dl { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 3px 18px; font-size: 14px; }
dt { color: var(--soft); } dd { text-align: right; overflow-wrap: anywhere; }

@media (max-width: 800px) {
  main { margin: 0; padding: 26px 20px 40px; border: 0; border-radius: 0; }
  h1 { font-size: 28px; } header { align-items: flex-start; gap: 16px; } .seal { width: 84px; height: 84px; }
  .check, .asked { grid-template-columns: minmax(0, 1fr); } .pictures { grid-template-columns: repeat(4, 1fr); }
  .tile { flex-basis: 45%; min-width: 140px; } .tile .value { font-size: 20px; }
}
@media print {
  :root {
    --page: #fff; --sheet: #fff; --ink: #111; --soft: #444; --line: #ccc; --track: #e6e6e6; --code: #f4f4f4;
    --s1: #1f6fb2; --s2: #c2601c; --s3: #5b4fa8; --s4: #a23b72; --s5: #3c7d7a; --s6: #8a7a2c;
    --good: #1d7a4f; --bad: #b3261e; --warn: #96640a; --bad-tint: #fbe9e7; --warn-tint: #fdf3df;
  }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { border: 0; margin: 0; padding: 0; max-width: none; } body { font-size: 12px; }
  .check, .tile, figure, tr { break-inside: avoid; } h2, .lead { break-after: avoid; }
  .wide .chart { min-width: 0; } .wide { overflow: visible; }
}
"""

STYLE = _PALETTES + _PAGE
