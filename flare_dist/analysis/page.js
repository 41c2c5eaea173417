"use strict";
// Draws the plots of a report. Every number comes from Python; here they are only shown.
const data = JSON.parse(document.getElementById("data").textContent);
const config = {responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
const hidden = new Set();

function layout(x) {
  const axis = {title: {text: x.title, standoff: 8}, gridcolor: "#e6e6e6", automargin: true, nticks: 8, zeroline: false};
  if (x.unit) Object.assign(axis, {ticksuffix: x.unit, exponentformat: "SI"});
  if (x.log) Object.assign(axis, {type: "log", ticksuffix: "", tickvals: x.ticks.map(tick => tick[0]),
    ticktext: x.ticks.map(tick => tick[1])});
  return {
    font: {size: 13, family: "system-ui, sans-serif"}, margin: {l: 55, r: 16, t: 12, b: 50}, height: 400,
    hovermode: "closest", showlegend: false, xaxis: axis, plot_bgcolor: "#fff",
    yaxis: {title: {text: data.metric, standoff: 8}, gridcolor: "#e6e6e6", automargin: true, zeroline: false},
  };
}

function traces(x) {
  const found = [];
  data.groups.forEach((group, n) => {
    const visible = !hidden.has(n);
    const kept = x.x[n].map((_, i) => i).filter(i => !x.log || x.x[n][i] > 0);
    const pick = values => kept.map(i => values[i]);
    const at = pick(x.x[n]);
    const mean = pick(group.mean);
    const last = at.length - 1;
    if (group.deviation.length) {
      const off = pick(group.deviation);
      const edge = sign => mean.map((value, i) => value === null ? null : value + sign * off[i]);
      found.push({x: [...at, ...[...at].reverse()], y: [...edge(1), ...edge(-1).reverse()], fill: "toself",
        fillcolor: group.colour + "33", line: {width: 0}, mode: "lines", hoverinfo: "skip", visible});
    }
    found.push({x: at, y: mean, name: group.short, mode: last > 0 ? "lines+text" : "markers+text", visible,
      line: {color: group.colour, dash: group.dash, width: 2}, marker: {color: group.colour},
      text: at.map((_, i) => i === last ? group.number : ""), textposition: "top center", customdata: pick(group.rounds),
      hovertemplate: `%{fullData.name}<br>round %{customdata}${x.unit ? `, %{x:.3s}${x.unit}` : ""}<br>%{y:.4f}<extra></extra>`});
  });
  return found;
}

function drawCurves() {
  const x = data.axes[document.getElementById("axis").value];
  Plotly.react("curves", traces(x), layout(x), config);
}

function drawProjected() {
  const slider = document.getElementById("rate");
  if (!slider) return;
  const stop = Number(slider.value);
  document.querySelectorAll(".rate").forEach(place => { place.textContent = data.rates[stop]; });
  document.querySelectorAll("[data-seconds]").forEach(cell => {
    cell.textContent = cell.dataset.seconds.split("|")[stop];
  });
  const x = data.projected[stop];
  Plotly.react("projected", traces(x), layout(x), config);
}

function drawMembers() {
  if (!data.members) return;
  const {names, settings} = data.members;
  const beside = n => 0.6 * ((n + 0.5) / settings.length - 0.5);  // equal values would hide each other
  const marks = settings.map((values, n) => ({
    x: values, y: values.map((_, i) => i + beside(n)), customdata: names, type: "scatter", mode: "markers",
    name: data.groups[n].short, visible: !hidden.has(n),
    marker: {color: data.groups[n].colour, size: 9, symbol: n % 10, line: {width: 1, color: "#fff"}},
    hovertemplate: "%{fullData.name}<br>%{customdata}: %{x:.4f}<extra></extra>",
  }));
  const shown = layout({title: data.metric});
  shown.xaxis.nticks = 5;
  shown.yaxis = {tickfont: {size: 11}, tickvals: names.map((_, i) => i), ticktext: names, automargin: true,
    range: [names.length - 0.5, -0.5], gridcolor: "#e6e6e6", zeroline: false};
  shown.height = 90 + Math.max(22, 9 * settings.length) * names.length;
  Plotly.react("members", marks, shown, config);
}

// A table that is wider than its place becomes a grid of labelled values; without this script it scrolls.
function fitTables() {
  document.querySelectorAll("table.cards").forEach(table => {
    table.classList.remove("grid");
    const isWide = window.innerWidth > 700 && table.scrollWidth > table.parentElement.clientWidth;
    table.classList.toggle("grid", isWide);
  });
}

function drawAll() { drawCurves(); drawProjected(); drawMembers(); }

document.getElementById("axis").addEventListener("change", drawCurves);
const slider = document.getElementById("rate");
if (slider) slider.addEventListener("input", drawProjected);
document.querySelectorAll("#legend input").forEach(box => box.addEventListener("change", () => {
  const n = Number(box.dataset.trace);
  if (box.checked) hidden.delete(n); else hidden.add(n);
  drawAll();
}));
document.querySelectorAll("button[data-group]").forEach(button => button.addEventListener("click", () => {
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", String(open));
  document.querySelectorAll(`tr.seed[data-of="${button.dataset.group}"]`).forEach(row => { row.hidden = !open; });
  fitTables();
}));
window.addEventListener("resize", fitTables);
drawAll();
fitTables();
