
// ---- the page of a run

start(async (data) => {
  const { rows, epochs, classes, columns, names } = data; // names: of the labels, where a sample has several
  const isRegression = classes.length === 0;
  const everyRow = rows.id.map((_, i) => i);
  const flagged = everyRow.filter((i) => rows.flagged[i]);
  const keyOf = (i) => (names ? `${rows.id[i]}/${rows.about[i]}` : String(rows.id[i]));
  const rowOf = new Map(everyRow.map((i) => [keyOf(i), i]));
  const last = rows.predicted[epochs.length - 1];
  const suggested = isRegression ? last : rows.suggested;
  const name = (value) => (value === null ? "no prediction" : isRegression ? String(value) : classes[value]);
  let table = null;

  // ---- decisions, by row: ["keep"], ["drop"], ["relabel", class] or nothing. The browser keeps them by `keyOf`.

  let decisions = [];
  let undo = []; // the latest last: pairs of a sample id and its decision before

  function recall() {
    decisions = [];
    try {
      const kept = JSON.parse(localStorage.getItem(data.key)) ?? { decisions: [], undo: [] };
      for (const [id, decision] of kept.decisions) if (rowOf.has(id)) decisions[rowOf.get(id)] = decision;
      undo = kept.undo;
    } catch (error) {
      tell(`The decisions that this browser has kept cannot be read: ${error.message}`);
    }
  }

  function set(changes) {
    for (const [id, decision] of changes) decisions[rowOf.get(id)] = decision ?? undefined;
    const kept = everyRow.filter((i) => decisions[i]).map((i) => [keyOf(i), decisions[i]]);
    try {
      localStorage.setItem(data.key, JSON.stringify({ decisions: kept, undo: undo.slice(-100) }));
    } catch (error) {
      tell(`This browser keeps no decisions, so download them before you leave: ${error.message}`);
    }
    refresh();
    table?.rows(changes.map(([id]) => rowOf.get(id))).invalidate();
    if (["undecided", "decided"].includes(byId("show").value)) table?.draw(false);
  }

  const rowsOf = new Map(); // of a sample with several labels, by its id
  if (names) for (const i of everyRow) rowsOf.set(rows.id[i], [...rowsOf.get(rows.id[i]) ?? [], i]);

  // Pairs of a row and its decision. To drop one label's row is to drop the sample; another decision takes that back.
  function decide(decided) {
    const made = new Map();
    for (const [i, decision] of decided) {
      const isDrop = decision[0] === "drop";
      for (const k of rowsOf.get(rows.id[i]) ?? []) {
        if (isDrop || decisions[k]?.[0] === "drop") made.set(k, isDrop ? decision : undefined);
      }
      made.set(i, decision);
    }
    undo.push([...made.keys()].map((i) => [keyOf(i), decisions[i]]));
    set([...made].map(([i, decision]) => [keyOf(i), decision]));
    step(1, (i) => !decisions[i]);
  }

  function takeBack() {
    const changes = (undo.pop() ?? []).filter(([id]) => rowOf.has(id));
    set(changes);
    if (changes.length) review(rowOf.get(changes[0][0]));
  }

  function download() {
    const cells = {
      sample_id: (i) => rows.id[i], ...(rows.token && { token: (i) => rows.token[i] }),
      decision: (i) => verb(decisions[i][0]),
      label: (i) => (names ? names[rows.about[i]] : decisions[i][0] === "relabel" ? classes[decisions[i][1]] : ""),
      given: (i) => name(rows.label[i]), suggested: (i) => (isRegression ? "" : name(suggested[i])),
      score: (i) => rows.noise_score[i],
    };
    const lines = everyRow.filter((i) => decisions[i]).map((i) => Object.values(cells).map((cell) => cell(i)));
    const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
    const text = [Object.keys(cells), ...lines]
      .map((line) => `${line.map(forFile).map(quoted).join(",")}\r\n`).join("");
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    Object.assign(element("a"), { href: url, download: "decisions.csv" }).click();
    URL.revokeObjectURL(url);
  }

  // ---- the review, of one sample after the other

  let queue = flagged.length ? flagged : everyRow;
  let at = queue[0];

  const verb = (decision) => (names && decision === "relabel" ? "flip" : decision);
  const aboutOf = (i) => (names ? ` · ${names[rows.about[i]]}` : !rows.token ? ""
    : rows.word?.[i] == null ? ` · token ${rows.token[i] + 1}` : ` · ${rows.word[i]}`);

  // The token of a tagger's sample, in its text.
  function markToken(i) {
    const [begin, end] = rows.mark?.[i] ?? [0, 0];
    const text = byId("text").textContent;
    if (end === 0 || end > text.length) return;
    byId("text").replaceChildren(text.slice(0, begin), element("mark", text.slice(begin, end)), text.slice(end));
  }

  function review(i) {
    at = i;
    const place = queue.indexOf(i);
    const isSame = suggested[i] === rows.label[i];
    fill({
      place: `Sample ${rows.id[i]}${place < 0 ? "" : `, ${place + 1} of ${counted(queue.length)}`}${aboutOf(i)}`,
      text: textOf(rows, i), given: name(rows.label[i]), suggested: name(suggested[i]),
      score: measured(rows.noise_score[i], columns[0]),
    });
    markToken(i);
    if (names) {
      const own = rows.own[i].map((label) => names[label]).join(", ");
      const looks = `looks ${data.looks[rows.look[i]]}`;
      fill({ own: own || "none", about: names[rows.about[i]], flip: rows.label[i] ? "Take it away" : "Add it",
        suggested: `${name(suggested[i])}, ${looks}` });
    } else if (!isRegression) byId("new").value = decisions[i]?.[1] ?? (isSame ? "" : suggested[i]);
    const percent = (value) => (value === null ? "–" : `${value}%`);
    byId("epochs").replaceChildren(...epochs.map((epoch, e) => {
      const predicted = rows.predicted[e][i];
      const row = element("tr");
      row.append(element("td", epoch),
        element("td", name(predicted), isRegression || predicted === rows.label[i] ? "" : "other"),
        ...(isRegression ? [] : [rows.given, rows.suggestion].map((of) => element("td", percent(of[e][i])))));
      return row;
    }));
    for (const column of columns) {
      document.querySelector(`[data-measure="${column.name}"]`).textContent = measured(rows[column.name][i], column);
    }
    const of = (values) => values.map((epoch) => epoch[i]);
    const line = (label, y, color) => ({ name: label, x: epochs, y, color });
    const lines = [ // in the colours of the labels above
      line("given", isRegression ? epochs.map(() => rows.label[i]) : of(rows.given), "#d1495b"),
      line(isRegression ? "predicted" : "suggested", of(isRegression ? rows.predicted : rows.suggestion), "#3d85c6"),
    ];
    drawHistory(isSame && !isRegression ? lines.slice(0, 1) : lines, isRegression ? "" : " %");
    if (table) mark(rows.variability[i], rows[isRegression ? "mean_absolute_error" : "confidence"][i]);
    refresh();
  }

  // To the next row of the queue, or the one before, that is wanted; where none is, it stays.
  function step(by, isWanted = () => true) {
    const start = queue.indexOf(at);
    const around = queue.map((_, k) => queue[(start + by * (k + 1) + 2 * queue.length) % queue.length]);
    review(around.find(isWanted) ?? at);
  }

  function begin(those) {
    queue = those;
    review(queue.find((i) => !decisions[i]) ?? queue[0]);
    byId("review").focus();
  }

  const relabel = (label) => { // of no class, or of the given one: nothing
    if (classes[label] !== undefined && Number(label) !== rows.label[at]) decide([[at, ["relabel", Number(label)]]]);
  };
  const keys = {
    k: () => decide([[at, ["keep"]]]), r: () => relabel(byId("new")?.value), d: () => decide([[at, ["drop"]]]),
    ...(names && { f: () => relabel(1 - rows.label[at]) }),
    n: () => step(1), p: () => step(-1), arrowright: () => step(1), arrowleft: () => step(-1), u: takeBack,
  };
  for (let number = 1; number <= 9 && !names; number += 1) keys[number] = () => relabel(number - 1);
  on("review", "keydown", (event) => {
    const isFinished = event.target === byId("new") && event.key === "Enter";
    const act = isFinished ? keys.r : keys[event.key.toLowerCase()];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select") && !isFinished) return;
    event.preventDefault();
    act();
  });
  on("review", "click", ({ target }) => keys[target.closest("[data-key]")?.dataset.key]?.());
  on("start", "click", () => begin(flagged.length ? flagged : everyRow));
  on("download", "click", download);

  // All undecided ones above a score; a new label only for those to which one is suggested.
  const above = (button) => everyRow.filter((i) => rows.noise_score[i] > byId("least").valueAsNumber && !decisions[i]
    && (button.name === "drop" || suggested[i] !== rows.label[i]));
  on("least", "input", () => refresh());
  on("above", "submit", (event) => {
    event.preventDefault();
    const isDrop = event.submitter.name === "drop";
    decide(above(event.submitter).map((i) => [i, isDrop ? ["drop"] : ["relabel", suggested[i]]]));
  });

  function refresh() {
    const pressed = { keep: "k", relabel: names ? "f" : "r", drop: "d" }[decisions[at]?.[0]];
    byId("choices").querySelectorAll("button").forEach((of) => { of.ariaPressed = of.dataset.key === pressed; });
    const done = flagged.filter((i) => decisions[i]).length;
    const further = decisions.filter(Boolean).length - done;
    byId("bar").max = flagged.length || 1;
    byId("bar").value = done;
    const others = further ? `, and ${counted(further)} more` : "";
    fill({ progress: `${counted(done)} of ${counted(flagged.length)} decided${others}` });
    byId("download").disabled = !done && !further;
    document.querySelector("[data-key=u]").disabled = !undo.length;
    for (const button of byId("above").querySelectorAll("button")) {
      const count = above(button).length;
      button.textContent = `${button.dataset.verb} ${counted(count)}`;
      button.disabled = !count;
    }
  }

  window.addEventListener("storage", ({ key }) => { // another window of this page has decided
    if (key === data.key) recall();
    refresh();
    table?.rows().invalidate();
  });

  recall();
  review(queue.find((i) => !decisions[i]) ?? at);
  await pause();

  // ---- the map and the table

  const label = (values) => (isRegression ? scores(({ i }) => values[i]) : choices(({ i }) => name(values[i])));
  const measure = (column, more) => numbers(({ i }) => rows[column.name][i], column, more);
  const inWords = (decision = "", to = null) => (to === null || names ? verb(decision) : `${decision}: ${classes[to]}`);
  const id = ({ i }) => String(rows.id[i]);
  table = await explore(data, {
    hoverText: (i) => hoverLabel(`id ${rows.id[i]}${names ? aboutOf(i) : ""}, given: ${name(rows.label[i])}`,
      rows.text?.[i],
      epochs.map((epoch, e) => `epoch ${epoch}: ${name(rows.predicted[e][i])}`
        + (isRegression || rows.given[e][i] === null ? "" : ` (${rows.given[e][i]}% given label)`))),
    open: (i, isFocused) => {
      review(i);
      if (isFocused) byId("review").focus();
    },
    columns: [
      ...(rows.text ? [opener(({ i }) => rows.text[i] ?? "")] : []),
      ...(rows.token ? [plain(({ i }) => rows.word?.[i] ?? String(rows.token[i] + 1))] : []),
      ...(names ? [({ i }) => names[rows.about[i]], ({ i }) => data.looks[rows.look[i]]].map(choices) : []),
      label(rows.label), ...(names ? [] : [label(suggested)]), measure(columns[0]),
      choices(({ i }) => inWords(...(decisions[i] ?? []))),
      (rows.text ? plain : opener)(id, { type: "num", className: "number" }),
      ...(isRegression ? [] : [plain(({ i }) => name(last[i]), { className: "more", visible: false })]),
      ...columns.slice(1).map((column) => measure(column, "more")),
    ],
    shows: {
      all: () => true, flagged: (i) => rows.flagged[i], undecided: (i) => rows.flagged[i] && !decisions[i],
      decided: (i) => decisions[i],
    },
    file: "samples",
  });
  review(at);
  on("these", "click", () => {
    const those = table.rows({ search: "applied", order: "applied" }).data().toArray().map(({ i }) => i);
    if (those.length) begin(those);
  });

  on("find", "submit", (event) => {
    event.preventDefault();
    const query = byId("query").value.trim().toLowerCase().replace(/^0+(?=\d+$)/, "");
    const known = everyRow.find((i) => String(rows.id[i]) === query);
    const found = known !== undefined ? [known]
      : everyRow.filter((i) => query && rows.text?.[i]?.toLowerCase().includes(query));
    // Of more samples than are listed, and of long texts, the page has a part.
    byId("found").value = !query || found.length === 1 ? "" : found.length
      ? `${counted(found.length)} samples: the most suspicious is shown`
      : `no id${rows.text ? " or text" : ""} on this page matches`;
    if (found.length) review(found[0]);
  });
});
