const HEIGHT = 168, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 22;
const FIRST_CHARTS = 6; // the others are folded
const cursors = [];

function showCursor(step) {
  for (const move of cursors) move(step);
}

// Local straight lines under a Gaussian window: no lag behind a trend and no bias at the ends.
function smoothed(values) {
  const width = Math.max(1, values.length / 28);
  const reach = Math.ceil(3 * width);
  return values.map((_, i) => {
    let w = 0, wx = 0, wy = 0, wxx = 0, wxy = 0;
    for (let j = Math.max(0, i - reach); j <= Math.min(values.length - 1, i + reach); j++) {
      const x = j - i, weight = Math.exp(-0.5 * (x / width) ** 2);
      w += weight; wx += weight * x; wy += weight * values[j];
      wxx += weight * x * x; wxy += weight * x * values[j];
    }
    return (wy * wxx - wx * wxy) / (w * wxx - wx * wx);
  });
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  const from = Math.ceil(low / size - 1e-9);
  for (let i = from; i * size <= high + size * 1e-6; i++) ticks.push(i * size);
  return ticks;
}

function tickLabel(value) {
  const size = Math.abs(value);
  const plain = size === 0 || (size >= 1e-3 && size < 1e4);
  return plain ? String(Number(value.toPrecision(4))) : shown(value);
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const every = Math.ceil((last - first) / 4) || 1;
  const ticks = [];
  for (let power = first; power <= last; power += every) ticks.push(10 ** power);
  return ticks;
}

function valueRange(chart) {
  let values = chart.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]);
  if (chart.unit === "log") values = values.filter((value) => value > 0);
  if (!values.length) return [1e-9, 1];
  let low = Math.min(...values), high = Math.max(...values);
  if (chart.unit === "log") {
    const powers = logTicks(low, high);
    return [Math.min(low, powers[0]), Math.max(high, powers[powers.length - 1])];
  }
  if (low >= 0 && (chart.unit === "share" || low < 0.6 * high)) low = 0;
  if (chart.unit === "share" && high > 0.5) high = Math.max(1, high);
  const around = low === 0 ? 1 : Math.abs(low) / 2;
  if (low === high) [low, high] = [low === 0 ? 0 : low - around, high + around];
  const ticks = niceTicks(low, high, 4);
  const size = ticks.length > 1 ? ticks[1] - ticks[0] : high - low;
  return [
    low === 0 ? 0 : Math.floor(low / size + 1e-6) * size,
    high === 1 && chart.unit === "share" ? 1 : Math.ceil(high / size - 1e-6) * size,
  ];
}

function line(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

// A second run has the colours of the first, and dashes.
function colorOf(chart, index) {
  const of = chart.series[index].run;
  const before = chart.series.slice(0, index).filter((series) => series.run === of);
  return `var(--c${(of === undefined ? index : before.length) % 8})`;
}

function drawChart(chart, steps, width, onStep) {
  const log = chart.unit === "log";
  const [low, high] = valueRange(chart);
  const [first, last] = steps;
  const bottom = HEIGHT - BOTTOM;
  const scale = (value) => (log ? Math.log(value) : value);
  const across = width - LEFT - RIGHT;
  const x = (step) => LEFT + (last === first ? 0.5 : (step - first) / (last - first)) * across;
  const y = (value) =>
    bottom - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (bottom - TOP);

  const box = `0 0 ${width} ${HEIGHT}`;
  const svg = element("svg", { viewBox: box, role: "img", "aria-label": chart.title });
  for (const tick of log ? logTicks(low, high) : niceTicks(low, high, 4)) {
    const percent = `${Number((100 * tick).toPrecision(3))} %`;
    const label = chart.unit === "share" ? percent : tickLabel(tick);
    svg.append(
      element("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      element("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, label),
    );
  }
  const marks = first === last ? [first] : niceTicks(first, last, width > 420 ? 8 : 5);
  for (const tick of marks.filter(Number.isInteger)) {
    const place = { x: x(tick), y: HEIGHT - 6, "text-anchor": "middle" };
    svg.append(element("text", place, String(tick)));
  }

  chart.series.forEach((series, index) => {
    const color = colorOf(chart, index);
    const kept = series.y.map((_, i) => i).filter((i) => !log || series.y[i] > 0);
    const at = (values) => kept.map((i) => [x(series.x[i]), y(values[i])]);
    const stroke = (path, name) => {
      path.style[name] = color;
      if (name === "stroke" && series.run) path.setAttribute("stroke-dasharray", "6 4");
      svg.append(path);
    };
    if (series.low) {
      const around = [...at(series.high), ...at(series.low).reverse()];
      stroke(element("path", { class: "band", d: `${line(around)}Z` }), "fill");
    }
    const raw = at(series.y);
    if (series.points || raw.length < 4) {
      stroke(element("path", { class: "smooth", d: line(raw) }), "stroke");
      const dots = raw.length > 60 ? [] : raw;
      for (const [cx, cy] of dots) stroke(element("circle", { cx, cy, r: 3.2 }), "fill");
    } else {
      const values = kept.map((i) => scale(series.y[i]));
      const back = (value) => y(log ? Math.exp(value) : value);
      const curve = smoothed(values).map((value, i) => [raw[i][0], back(value)]);
      stroke(element("path", { class: "raw", d: line(raw) }), "stroke");
      stroke(element("path", { class: "smooth", d: line(curve) }), "stroke");
    }
  });

  const cursor = element("line", { class: "cursor", y1: TOP, y2: bottom, visibility: "hidden" });
  svg.append(cursor);
  const measured = measuredSteps(chart);
  const stepUnder = (event) => {
    const seen = svg.getBoundingClientRect();
    const place = ((event.clientX - seen.left) / seen.width) * width;
    const share = Math.min(1, Math.max(0, (place - LEFT) / across));
    return nearest(measured, first + share * (last - first));
  };
  svg.addEventListener("pointermove", (event) => showCursor(stepUnder(event)));
  svg.addEventListener("pointerleave", () => showCursor(null));
  svg.addEventListener("click", (event) => onStep(stepUnder(event)));
  const move = (step) => {
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
  };
  return [svg, move];
}

// Steps at which any series of a chart has a value.
function measuredSteps(chart) {
  return [...new Set(chart.series.flatMap((series) => series.x))];
}

function nearest(xs, step) {
  return xs.reduce((a, b) => (Math.abs(b - step) <= Math.abs(a - step) ? b : a));
}

function chartCard(chart, steps, onStep) {
  const values = chart.series.map(() => element("b"));
  const axis = chart.axis || "step";
  const measured = measuredSteps(chart);
  const legend = element(
    "div",
    { class: "legend" },
    ...chart.series.map((series, index) => {
      const mark = element("i");
      mark.style.background = colorOf(chart, index);
      if (series.run) mark.className = "dashed";
      return element("span", {}, mark, visible(series.label), " ", values[index]);
    }),
    element("span", {}, ""),
  );
  const place = element("div", { class: "plot" });
  const card = element(
    "div",
    { class: "card chart" },
    element("h3", {}, visible(chart.title)),
    element("p", { class: "note" }, chart.note),
    place,
    legend,
  );
  let moveLine = () => {};
  // Every value is shown with the step at which it was measured.
  cursors.push((wanted) => {
    const step = wanted === null ? null : nearest(measured, wanted);
    moveLine(step);
    legend.lastChild.textContent = step === null ? "" : `at ${axis} ${step}`;
    chart.series.forEach((series, index) => {
      const from = step === null ? series.x[series.x.length - 1] : nearest(series.x, step);
      const value = shown(series.y[series.x.indexOf(from)], chart.unit);
      values[index].textContent = step === null || from === step ? value : `${value} (${axis} ${from})`;
    });
  });
  let drawn = 0;
  const draw = () => {
    const width = Math.round(place.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    const [svg, move] = drawChart(chart, steps, width, onStep);
    moveLine = move;
    place.replaceChildren(svg);
  };
  new ResizeObserver(draw).observe(place);
  return card;
}

function showCharts({ main, other }, onStep) {
  const all = [...main, ...other].flatMap((chart) => chart.series.flatMap((series) => series.x));
  if (!all.length) {
    document.getElementById("charts").closest("section").remove();
    return;
  }
  const steps = all.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [all[0], all[0]]);
  const card = (chart) => chartCard(chart, steps, onStep);
  for (const chart of main) {
    if (chart.title.startsWith("Held-out success")) document.getElementById("hero").append(card(chart));
  }
  const curves = main.filter((chart) => !chart.title.startsWith("Held-out success"));
  document.getElementById("charts").append(...curves.slice(0, FIRST_CHARTS).map(card));
  for (const [id, charts] of [["more", curves.slice(FIRST_CHARTS)], ["other", other]]) {
    const place = document.getElementById(id);
    if (!charts.length) place.remove();
    place.addEventListener("toggle", () => {
      const grid = place.querySelector(".grid");
      if (!grid.childElementCount) grid.append(...charts.map(card));
      showCursor(null);
    });
  }
  showCursor(null);
}
