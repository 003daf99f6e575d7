// What the pages share: data and libraries, plots in the page's colours, map and table. page.<kind>.js follows.

const byId = (id) => document.getElementById(id);
const on = (id, event, act) => byId(id)?.addEventListener(event, act);
const narrow = window.matchMedia("(max-width: 700px)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

async function unpack(id) {
  const packed = atob(byId(id).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let k = 0; k < packed.length; k += 1) bytes[k] = packed.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function load(id) {
  const url = URL.createObjectURL(new Blob([await unpack(id)], { type: "text/javascript" }));
  const library = await import(url);
  URL.revokeObjectURL(url);
  return library;
}

const pause = () => new Promise((resume) => setTimeout(resume)); // the browser shows what is there

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text ?? "";
  made.className = className;
  return made;
}

// Texts of elements, by id.
const fill = (texts) => Object.entries(texts).forEach(([id, text]) => { byId(id).textContent = text; });

function tell(message) {
  fill({ failure: message });
  byId("failure").hidden = false;
}

// Unpacks the data, lets `main` show it, and draws the plots at the end of the page.
async function start(main) {
  try {
    const data = JSON.parse(await unpack("data"));
    await load("plotly"); // which is no module: it leaves a global
    await main(data);
    for (const name of Object.keys(data.figures).filter((key) => key !== "map")) {
      await pause();
      draw(name, data.figures[name]);
    }
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    tell(`The report could not be shown. It needs a browser from 2023 or later. The error: ${error.message}`);
    throw error;
  }
}

// ---- values as text

const counted = (count) => count.toLocaleString("en");

// Scores may be of any size.
const measured = (value, { digits, in_scores: inScores }) => (value === null ? "–"
  : inScores && value !== 0 && Math.abs(value) < 0.1 ? value.toPrecision(digits) : value.toFixed(digits));

// A cell of a CSV file: as it is, but for what a spreadsheet would run as a formula.
function forFile(value) {
  const isFormula = typeof value === "string" && /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value));
  return isFormula ? `'${value}` : String(value ?? "");
}

// Plotly reads some HTML in its labels.
const escape = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// Lines at whitespace where there is some, else at the width. A zero before each wide character makes it count twice.
const wrap = (text, width) => text
  .replace(/[\u2e80-\u{10ffff}]/gu, "\0$&")
  .replace(new RegExp(`(.{${width / 2},${width}})\\s|(.{${width}})(?=.)`, "gu"), "$1$2\n")
  .replaceAll("\0", "");

const textOf = ({ text, id }, i) => (text ? text[i] ?? "(not in the data set)" : `sample ${id[i]}`);

function hoverLabel(title, text, lines) {
  const cut = text?.replace(/^(.{299})..+$/su, "$1…");
  const words = cut ? [wrap(cut, narrow.matches ? 36 : 64)] : [];
  return escape([title, ...words, ...(lines.length > 8 ? ["…", ...lines.slice(-8)] : lines)].join("\n"))
    .replace(/\n/g, "<br>");
}

// ---- plots

// A finger that drags on a plot wants to scroll the page.
const dragging = window.matchMedia("(pointer: coarse)").matches ? false : "zoom";

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (property) => style.getPropertyValue(property).trim();
  const axis = {
    gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"),
    tickfont: { color: colour("--quiet") }, title: { font: { color: colour("--quiet"), size: 12.5 } },
  };
  return {
    layout: {
      font: { family: style.fontFamily, color: colour("--ink"), size: 12.5 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
      annotationdefaults: { bgcolor: colour("--veil"), borderpad: 3 },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"),
        font: { family: style.fontFamily, color: colour("--ink") } },
    },
  };
}

const draw = (name, { data, layout }) => Plotly.react(byId(`plot-${name}`), data,
  { dragmode: dragging, ...layout, template: theme() }, { responsive: true, displayModeBar: false });

dark.addEventListener("change", () => document.querySelectorAll(".js-plotly-plot")
  .forEach((plot) => Plotly.relayout(plot, { template: theme() })));

// One sample's history: `lines` of {name, x, y, color}, in percent or in scores.
function drawHistory(lines, unit) {
  const epochs = Math.max(...lines.flatMap(({ x }) => x)) + 1;
  const data = lines.map(({ name, x, y, color }) => ({
    x, y, name: escape(name), mode: "lines+markers", line: { color, width: 2 }, hovertemplate: `%{y}${unit}`,
  }));
  draw("history", { data, layout: {
    xaxis: { title: { text: "epoch" }, tickformat: "d", dtick: Math.max(1, Math.ceil(epochs / 10)) },
    yaxis: unit ? { range: [-6, 106], ticksuffix: unit, dtick: 50 } : {},
    margin: { l: 50, r: 12, t: 8, b: 36 }, showlegend: true, hovermode: "x unified", dragmode: false,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  } });
  const told = lines.map(({ name, y }) => `${name}: ${y.map((value) => `${value ?? "none"}${unit}`).join(", ")}`);
  byId("plot-history").ariaLabel = `By epoch, ${told.join("; ")}`;
}

// ---- the map and the table of the same rows, which a lasso, a matrix and a choice filter together

// Colours to choose, points to pick, and a lasso: `choose` gets a set of rows, or null.
async function drawMap({ figures, colourings, drawn }, hoverText, pick, choose) {
  const plot = byId("plot-map");
  figures.map.data[0].hovertext = drawn.map(hoverText);
  await draw("map", figures.map);

  on("colouring", "change", ({ target }) => {
    const { marker } = colourings[target.value];
    const changed = ["color", "colorscale", "cmin", "cmax"].map((name) => [`marker.${name}`, [marker[name] ?? null]]);
    Plotly.restyle(plot, Object.fromEntries(changed));
    document.querySelectorAll("ul.legend").forEach((legend, k) => { legend.hidden = k !== Number(target.value); });
  });
  const rowsOf = (points) => points.map(({ pointNumber }) => drawn[pointNumber]);
  plot.on("plotly_click", ({ points }) => pick(rowsOf(points)[0]));
  plot.on("plotly_selected", (event) => event && choose(new Set(rowsOf(event.points))));
  plot.on("plotly_deselect", () => choose(null));
  on("lasso", "click", ({ currentTarget: button }) => {
    button.ariaPressed = button.ariaPressed !== "true";
    Plotly.relayout(plot, { dragmode: button.ariaPressed === "true" ? "lasso" : dragging });
  });
}

// A ring of 18 pixels around a point of the map.
const mark = (x, y) => Plotly.relayout("plot-map", { shapes: [{
  type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -9, x1: 9, y0: -9, y1: 9,
  line: { color: "#d98324", width: 3 },
}] });

// Kinds of columns of the table, whose rows are {i}. Without escaping for the filter, DataTables would parse HTML.
const asText = { display: escape, filter: escape };
const opening = (value) => `<button type="button" class="open"><span>${escape(value) || "–"}</span></button>`;
const plain = (data, more) => ({ data, type: "string", render: asText, ...more });
const choices = (data) => plain(data, { className: "label", columnControl: [["searchList"]] });
const opener = (data, more) => plain(data, { render: { display: opening, filter: escape }, ...more });
const scores = (data) => plain(data, { type: "num", className: "number" });
const numbers = (data, column, more = "") => ({
  data, type: "num", searchable: false, className: `number ${more}`, visible: !more,
  render: (value, use) => (use !== "display" ? value : value === null ? "" : measured(value, column)),
});

// `shows`: which rows each option of the choice shows; `open` shows a row's sample. Returns the table.
async function explore(data, { hoverText, open, columns, shows, file }) {
  const [across, down] = data.pair.map((name) => data.rows[name]);
  const filter = { pair: null, chosen: null };
  let table = null;

  function apply(change) {
    Object.assign(filter, change);
    for (const button of document.querySelectorAll("#matrix button")) {
      button.ariaPressed = button.dataset.pair === filter.pair;
    }
    table?.draw();
  }
  await drawMap(data, hoverText, open, (chosen) => apply({ chosen }));
  await pause();

  const { default: DataTable, set_or_remove_dark_class: followScheme } = await load("datatables");
  followScheme();
  table = new DataTable("#samples", {
    data: data.rows.id.map((_, i) => ({ i })), columns, order: [], autoWidth: false,
    pageLength: narrow.matches ? 10 : 25,
    layout: {
      topStart: { buttons: [{ extend: "columnToggle", columns: ".more", text: "More measures" }, {
        extend: "csvHtml5", text: "Download these rows as CSV", filename: file, title: null,
        exportOptions: { modifier: { search: "applied" }, orthogonal: "export", format: { body: forFile } },
      }] },
      topEnd: "search", bottomStart: ["pageLength", "info"], bottomEnd: "paging",
    },
    language: { search: "", searchPlaceholder: "Search the table", lengthMenu: "_MENU_ rows" },
  });
  // On a narrow screen it scrolls by itself.
  Object.assign(document.querySelector(".dt-layout-table"), { tabIndex: 0, role: "region", ariaLabel: "Samples" });
  table.search.fixed("page", (_, { i }) => Boolean(shows[byId("show").value](i)) && (filter.chosen?.has(i) ?? true)
    && (!filter.pair || filter.pair === `${across[i]},${down[i]}`));
  table.on("column-visibility", () => {
    byId("more").hidden = !table.columns(".more").visible().toArray().includes(true);
  });
  table.on("click", "button.open", ({ target }) => open(table.row(target.closest("tr")).data().i, true));
  table.on("draw", () => {
    const pressed = document.querySelector("#matrix [aria-pressed=true]")?.title;
    const filters = [...(pressed ? [pressed] : []), ...(filter.chosen ? ["chosen on the map"] : [])];
    byId("listed").value = [`${counted(table.rows({ search: "applied" }).count())} listed`, ...filters].join(", ");
    byId("everything").hidden = !filters.length && byId("show").value === "all";
  });
  table.draw();
  on("show", "change", () => apply({}));
  on("matrix", "click", ({ target }) => target.dataset.pair
    && apply({ pair: target.ariaPressed === "true" ? null : target.dataset.pair }));
  on("everything", "click", () => {
    byId("show").value = "all";
    Plotly.update("plot-map", { selectedpoints: [null] }, { selections: [] });
    apply({ pair: null, chosen: null });
  });
  return table;
}
