const byId = (id) => document.getElementById(id);

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function load(id) {
  const url = URL.createObjectURL(new Blob([await unpack(id)], { type: "text/javascript" }));
  const library = await import(url);
  URL.revokeObjectURL(url);
  return library;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const narrow = window.matchMedia("(max-width: 700px)");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

async function main() {
  const data = JSON.parse(await unpack("data"));
  await load("plotly"); // which is no module: it leaves a global
  const { default: DataTable, set_or_remove_dark_class: followScheme } = await load("datatables");
  followScheme();

  const { rows, epochs, classes, columns } = data;
  const isRegression = classes.length === 0;
  const name = (value) => (value === null ? "no prediction" : isRegression ? String(value) : classes[value]);
  const last = rows.predicted[epochs.length - 1];

  // ---- the plots

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
        hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"),
          font: { family: style.fontFamily, color: colour("--ink") } },
      },
    };
  }

  const plots = Object.keys(data.figures).map((key) => byId(`plot-${key}`));
  const settings = { responsive: true, displaylogo: false, displayModeBar: false };
  // A finger that drags on a plot wants to scroll the page.
  const dragmode = window.matchMedia("(pointer: coarse)").matches ? false : "zoom";

  // Plotly reads some HTML in its labels.
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // At whitespace where there is some, else at the width. A zero before each wide character makes it count twice.
  const wrap = (text, width) => text
    .replace(/[\u2e80-\u{10ffff}]/gu, "\0$&")
    .replace(new RegExp(`(.{${width / 2},${width}})\\s|(.{${width}})(?=.)`, "gu"), "$1$2\n")
    .replaceAll("\0", "");
  const perEpoch = (i) => epochs.map((epoch, at) => {
    const percent = isRegression || rows.given[at][i] === null ? "" : ` (${rows.given[at][i]}% given label)`;
    return `epoch ${epoch}: ${name(rows.predicted[at][i])}${percent}`;
  });

  function hoverText(i) {
    const lines = [`id ${rows.id[i]}, given: ${name(rows.label[i])}`];
    if (rows.text?.[i]) lines.push(wrap(rows.text[i], narrow.matches ? 36 : 64));
    const predictions = perEpoch(i);
    if (predictions.length > 8) predictions.splice(0, predictions.length - 8, "…");
    return escape([...lines, ...predictions].join("\n")).replace(/\n/g, "<br>");
  }

  const map = data.figures.map;
  map.data[0].hovertext = data.drawn.map(hoverText);
  await Promise.all(Object.entries(data.figures).map(([key, figure]) =>
    Plotly.newPlot(byId(`plot-${key}`), figure.data, { ...figure.layout, dragmode, template: theme() }, settings)));
  dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, { template: theme() })));

  // Scores may be of any size.
  const measured = (value, { digits, in_scores: inScores }) =>
    (inScores && value !== 0 && Math.abs(value) < 0.1 ? value.toPrecision(digits) : value.toFixed(digits));

  // ---- one sample

  function show(i) {
    const panel = byId("details");
    const heading = element("h3", `Sample ${rows.id[i]}`);
    const verdict = element("p", undefined, "verdict");
    verdict.append("given ", element("b", name(rows.label[i])), ", last predicted ", element("b", name(last[i])));
    const table = element("table", undefined, "epochs");
    const head = table.createTHead().insertRow();
    for (const title of isRegression ? ["epoch", "prediction"] : ["epoch", "prediction", "given label"]) {
      head.append(element("th", title));
    }
    const body = table.createTBody();
    epochs.forEach((epoch, at) => {
      const predicted = rows.predicted[at][i];
      const row = body.insertRow();
      row.append(element("td", epoch));
      row.append(element("td", name(predicted), isRegression || predicted === rows.label[i] ? "" : "other"));
      if (!isRegression) {
        const cell = element("td", undefined, "percent");
        const percent = rows.given[at][i];
        if (percent !== null) {
          const bar = element("i");
          bar.style.width = `${percent * 0.6}%`;
          cell.append(bar, `${percent}%`);
        }
        row.append(cell);
      }
    });
    const measures = element("dl", undefined, "measures");
    for (const column of columns) {
      const value = rows[column.name][i];
      const pair = element("div");
      pair.append(element("dt", column.title), element("dd", value === null ? "–" : measured(value, column)));
      measures.append(pair);
    }
    const text = rows.text ? [element("p", rows.text[i] ?? "(not in the data set)", "text")] : [];
    panel.replaceChildren(heading, ...text, verdict, table, measures);
    const [x, y] = isRegression ? ["variability", "mean_absolute_error"] : ["variability", "confidence"];
    Plotly.restyle("plot-map", { x: [[rows[x][i]]], y: [[rows[y][i]]] }, [1]);
  }

  byId("plot-map").on("plotly_click", ({ points }) => {
    if (points[0].curveNumber === 0) show(data.drawn[points[0].pointNumber]);
  });

  // ---- the table

  // Text goes into the file as it is, but what a spreadsheet would run as a formula.
  const isFormula = (value) => typeof value === "string" && /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value));
  const forFile = (value) => (isFormula(value) ? `'${value}` : value ?? "");
  const text = DataTable.render.text();
  const clamped = { display: (value) => `<div class="sample-text">${text.display(value)}</div>`, filter: text.filter };
  const classFilter = isRegression ? {} : { columnControl: [["searchList"]] };
  const shown = isRegression ? "num" : "string";
  const cell = (value) => (isRegression ? value : name(value));
  const table = new DataTable("#samples", {
    data: rows.id.map((id, i) => ({ i, id, label: cell(rows.label[i]), predicted: cell(last[i]) })),
    columns: [
      { data: null, orderable: false, searchable: false, className: "tick", render: DataTable.render.select() },
      {
        data: "id", type: "num", className: "number",
        render: (id, kind) => (kind === "display" ? `<button type="button" class="id">${id}</button>` : id),
      },
      ...(rows.text ? [{ data: ({ i }) => rows.text[i] ?? "", type: "string", render: clamped }] : []),
      { data: "label", type: shown, render: text, ...classFilter },
      { data: "predicted", type: shown, render: text, ...classFilter },
      ...columns.map((column) => ({
        data: ({ i }) => rows[column.name][i], type: "num", searchable: false, className: "number",
        render: (value, kind) => (kind !== "display" ? value : value === null ? "" : measured(value, column)),
      })),
    ],
    order: [],
    autoWidth: false,
    pageLength: narrow.matches ? 10 : 25,
    select: { style: "multi", selector: "td.tick", headerCheckbox: "select-page" },
    layout: {
      topStart: {
        buttons: [{
          extend: "csvHtml5", text: "Download ticked as CSV", filename: "ticked-samples", title: null, enabled: false,
          exportOptions: {
            columns: ":gt(0)", modifier: { selected: true, search: "none" }, orthogonal: "export",
            format: { body: forFile },
          },
        }],
      },
      topEnd: "search", bottomStart: ["pageLength", "info"], bottomEnd: "paging",
    },
    language: {
      search: "", searchPlaceholder: "Search the table", lengthMenu: "_MENU_ rows",
      select: { rows: { 0: "", 1: "1 ticked", _: "%d ticked" } },
    },
  });
  table.on("select deselect", () => {
    const count = table.rows({ selected: true }).count();
    table.button(0).enable(count > 0).text(count ? `Download ${count} ticked as CSV` : "Download ticked as CSV");
  });
  table.on("click", "button.id", (event) => {
    show(table.row(event.target.closest("tr")).data().i);
    byId("plot-map").scrollIntoView({ behavior: "smooth", block: "nearest" });
  });

  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const query = byId("query").value.trim().toLowerCase();
    const wanted = query.replace(/^0+(?=\d)/, "");
    const byNumber = rows.id.findIndex((id) => String(id) === wanted);
    const found = byNumber >= 0 || !query || !rows.text
      ? [byNumber].filter((i) => i >= 0)
      : rows.text.flatMap((words, i) => (words?.toLowerCase().includes(query) ? [i] : []));
    // Of more samples than are listed, and of long texts, the page has a part.
    const none = `no id${rows.text ? " or text" : ""} on this page matches`;
    byId("found").value = !query ? "" : found.length > 1
      ? `${found.length} samples: the most suspicious is shown` : found.length ? "" : none;
    if (found.length) show(found[0]);
  });

  document.documentElement.dataset.ready = "true";
}

main().catch((error) => {
  byId("failure").textContent = `The report, which needs a browser from 2023 on, could not be shown: ${error.message}`;
  byId("failure").hidden = false;
  throw error;
});
