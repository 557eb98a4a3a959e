"""The style sheet of the report page: phone, desktop and print, light and dark."""

STYLE = """\
:root {
  --text: #1c2733; --pale: #5b6875; --paper: #ffffff; --line: #d8dee4; --mark: #fff3d6;
  --curve0: #0b5cad; --curve1: #c2410c; --curve2: #15803d;
  --curve3: #7e22ce; --curve4: #b91c5c; --curve5: #0e7490;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6edf3; --pale: #9aa7b4; --paper: #11161c; --line: #313a44; --mark: #3b3010;
    --curve0: #6cb6ff; --curve1: #ff9e64; --curve2: #7ee2a0;
    --curve3: #d2a8ff; --curve4: #ff9bc4; --curve5: #67d7ea;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--text); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; overflow-wrap: anywhere; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, figcaption { color: var(--pale); margin: .4rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th, td { min-width: 3.6rem; }
tbody th { font-weight: 500; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.settings td { overflow-wrap: anywhere; white-space: normal; }
.paper th, .paper td { color: var(--pale); }
.differs th, .differs td { background: var(--mark); }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; background: #fff; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--pale); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: .35; }
.curve0 { stroke: var(--curve0); } .dot.curve0 { fill: var(--curve0); }
.curve1 { stroke: var(--curve1); } .dot.curve1 { fill: var(--curve1); }
.curve2 { stroke: var(--curve2); } .dot.curve2 { fill: var(--curve2); }
.curve3 { stroke: var(--curve3); } .dot.curve3 { fill: var(--curve3); }
.curve4 { stroke: var(--curve4); } .dot.curve4 { fill: var(--curve4); }
.curve5 { stroke: var(--curve5); } .dot.curve5 { fill: var(--curve5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .3rem 0;
  padding: 0; font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .5rem; overflow-wrap: anywhere; }
.legend svg { width: 24px; height: 8px; flex: none; }
@media (max-width: 40rem) { svg text { font-size: 18px; } }
@media print {
  :root { --text: #000; --pale: #444; --paper: #fff; --line: #bbb; --mark: #eee; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  .wide { overflow: visible; }
  h2, h3 { break-after: avoid; }
  svg, figure, tr { break-inside: avoid; }
}
"""
