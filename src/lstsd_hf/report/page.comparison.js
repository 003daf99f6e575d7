
// ---- the page of two runs

start(async (data) => {
  const colours = ["#d98324", "#3d85c6", "#8a8f98"]; // of A, of B, of the score
  const { rows, runs, classes, columns } = data;
  const isRegression = classes.length === 0;
  const name = (value) => (isRegression ? String(value) : classes[value]);
  const changed = (i) => (isRegression ? rows.gain[i] : rows.right_b[i] - rows.right_a[i]);

  function open(i, isFocused) {
    fill({
      place: `Sample ${rows.id[i]}`, text: textOf(rows, i), label: name(rows.label[i]), a: name(rows.last[0][i]),
      b: name(rows.last[1][i]), gain: measured(rows.gain[i], columns[0]),
    });
    const lines = runs.map((run, k) => (
      { name: "AB"[k], x: run.epochs, y: rows.history[k].map((of) => of[i]), color: colours[k] }));
    const score = { name: "score", x: runs[1].epochs, y: runs[1].epochs.map(() => rows.label[i]), color: colours[2] };
    drawHistory(isRegression ? [...lines, score] : lines, isRegression ? "" : " %");
    const [x, y] = ["a", "b"].map((of) => rows[`${isRegression ? "mean_absolute_error" : "confidence"}_${of}`][i]);
    if (byId("plot-map").data) mark(x, y);
    if (isFocused) byId("review").focus();
  }

  open(0);
  const id = ({ i }) => String(rows.id[i]);
  await explore(data, {
    hoverText: (i) => hoverLabel(`id ${rows.id[i]}, label: ${name(rows.label[i])}`, rows.text?.[i],
      runs.map((run, k) => `${"AB"[k]}: ${name(rows.last[k][i])}`)),
    open,
    columns: [
      ...(rows.text ? [opener(({ i }) => rows.text[i] ?? "")] : []),
      ...[rows.label, ...rows.last].map((values) => (isRegression ? scores : choices)(({ i }) => name(values[i]))),
      numbers(({ i }) => rows.gain[i], columns[0]),
      (rows.text ? plain : opener)(id, { type: "num", className: "number" }),
      ...columns.slice(1).map((column) => numbers(({ i }) => rows[column.name][i], column, "more")),
    ],
    shows: { all: () => true, better: (i) => changed(i) > 0, worse: (i) => changed(i) < 0 },
    file: "comparison",
  });
  open(0);
});
