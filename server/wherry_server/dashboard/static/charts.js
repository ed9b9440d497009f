// Draws `[data-chart]` from the JSON behind `data-href` (dashboard/charts.py). Charts of one address share a request.
"use strict";
(() => {
  if (!window.uPlot) return;
  const MINUTE = 60, AGAIN_MS = 15000, HEIGHT = 176;
  const DASHES = [[], [6, 3], [2, 3], [10, 3, 2, 3], [4, 6]];
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const drawn = new Map();   // element -> {plot, chart}
  let fetched = 0;

  function colour(tone) {
    probe.className = "";
    probe.style.color = `var(--${tone})`;
    return getComputedStyle(probe).color;
  }
  const digits = (value) => (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
  function words(value, unit) {
    if (value === null || value === undefined) return "–";
    return `${Number(value.toFixed(digits(value)))}${unit ? (unit === "%" ? "" : "\u202f") + unit : ""}`;
  }
  function marks(chart) {
    return (plot) => {
      const ctx = plot.ctx, box = plot.bbox;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = colour("soft");
      ctx.setLineDash([3, 3]);
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = "left";
      const gap = 4 * devicePixelRatio, height = 13 * devicePixelRatio;
      const rows = Array.from({ length: 4 }, () => []);   // (begin, end) of the labels that stand there
      const seen = (chart.marks || []).map(([at, text]) => [plot.valToPos(at, "x", true), text])
        .filter(([x]) => x >= box.left && x <= box.left + box.width);
      for (const [x] of seen) {
        ctx.beginPath();
        ctx.moveTo(x, box.top);
        ctx.lineTo(x, box.top + box.height);
        ctx.stroke();
      }
      const ink = ctx.fillStyle, ground = colour("card");
      for (const [x, text] of seen) {
        const width = ctx.measureText(text).width;
        const begin = x + gap + width > box.left + box.width ? x - gap - width : x + gap;
        // The first row where it covers no other label; where swaps are that close, a line without words says enough.
        const row = rows.findIndex((taken) => taken.every(([from, to]) => begin > to + gap || begin + width + gap < from));
        if (row < 0) continue;
        rows[row].push([begin, begin + width]);
        const base = box.top + (row + 1) * height - 2 * devicePixelRatio;
        ctx.fillStyle = ground;
        ctx.fillRect(begin - 2 * devicePixelRatio, base - 10 * devicePixelRatio, width + gap, height);
        ctx.fillStyle = ink;
        ctx.fillText(text, begin, base);
      }
      ctx.restore();
    };
  }
  function newest(plot) {
    const lines = plot.data.slice(1);
    let index = plot.data[0].length - 1;
    while (index > 0 && !lines.some((values) => values[index] !== null)) index -= 1;
    plot.setLegend({ idx: index }, false);
  }
  function options(chart, width) {
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1, size: 4 }, font: "11px system-ui, sans-serif" };
    const [first, last] = [chart.times[0], chart.times[chart.times.length - 1]];
    return {
      width, height: HEIGHT, padding: [10, 18, 0, 0],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
      cursor: { sync: { key: "wherry" }, drag: { setScale: false, x: false, y: false }, points: { size: 6 } },
      scales: {
        x: { range: () => [first, Math.max(last, first + MINUTE)] },
        y: { range: (plot, low, high) => [0, (high || 1) * 1.12] },
      },
      axes: [
        { ...axis, space: 60, size: 28, values: (plot, ticks) => ticks.map((at) => label(at, last - first)) },
        { ...axis, size: 56, space: 32, values: (plot, ticks) => ticks.map((value) => words(value, chart.unit)) },
      ],
      series: [
        { label: "at", value: (plot, at) => (at === null ? "" : label(at, last - first, true)) },
        ...chart.lines.map((line, index) => ({
          label: line.label, stroke: colour(line.tone), width: 1.75, dash: DASHES[index % DASHES.length], spanGaps: false, points: { show: line.values.filter((value) => value !== null).length < 12 },
          value: (plot, value) => words(value, chart.unit),
        })),
      ],
      // Without a cursor the legend tells the newest values.
      hooks: { draw: [marks(chart)], ready: [newest], setCursor: [(plot) => { if (plot.cursor.idx === null) newest(plot); }] },
    };
  }
  function label(at, span, exact) {
    const date = new Date(at * 1000), two = (number) => String(number).padStart(2, "0");
    const time = `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
    const day = `${date.getUTCDate()} ${date.toLocaleString("en", { month: "short", timeZone: "UTC" })}`;
    if (exact) return span > 86400 * 1.5 ? `${day} ${time}` : time;
    return span > 86400 * 1.5 ? day : time;
  }
  function draw(element, chart) {
    const old = drawn.get(element);
    const data = chart && [chart.times, ...chart.lines.map((line) => line.values)];
    const empty = !chart || !chart.lines.some((line) => line.values.some((value) => value !== null));
    if (old) old.plot.destroy();
    drawn.delete(element);
    if (empty) {
      element.innerHTML = '<p class="plot-empty">Nothing was measured in this time.</p>';
      return;
    }
    element.textContent = "";
    drawn.set(element, { chart, plot: new uPlot(options(chart, element.clientWidth), data, element) });
    element.dataset.drawn = "true";
  }
  async function load() {
    fetched = performance.now();
    const elements = [...document.querySelectorAll("[data-chart]")];
    for (const href of new Set(elements.map((element) => element.dataset.href))) {
      try {
        const reply = await fetch(href, { credentials: "same-origin", headers: { "HX-Request": "true" } });
        if (!reply.ok) continue;
        const { charts } = await reply.json();
        for (const element of elements) if (element.dataset.href === href) draw(element, charts[element.dataset.chart]);
      } catch { /* what is drawn stays; the page says that the server is away */ }
    }
  }
  new ResizeObserver(() => {
    for (const [element, { plot }] of drawn) {
      if (element.isConnected && plot.width !== element.clientWidth && element.clientWidth) plot.setSize({ width: element.clientWidth, height: HEIGHT });
    }
  }).observe(document.body);
  const redraw = () => { for (const [element, { chart }] of [...drawn]) draw(element, chart); };
  document.addEventListener("wherry:theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("wherry:fresh", () => { if (performance.now() - fetched > AGAIN_MS) load(); });
  document.addEventListener("htmx:afterSettle", () => {
    if (document.querySelector("[data-chart]:not([data-drawn])")) load();
  });
  load();
})();
