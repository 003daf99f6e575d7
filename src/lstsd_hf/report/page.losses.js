
// ---- the page of a run of question answering or of a language model

start(async (data) => {
  const { rows, epochs, columns } = data;
  let at = 0;
  let table = null;

  function show(i) {
    at = i;
    fill({ place: `Sample ${rows.id[i]}, ${i + 1} of ${counted(rows.id.length)} by loss`, text: textOf(rows, i) });
    for (const column of columns) {
      document.querySelector(`[data-measure="${column.name}"]`).textContent = measured(rows[column.name][i], column);
    }
    drawHistory([{ name: "loss", x: epochs, y: rows.by_epoch.map((epoch) => epoch[i]), color: "#3d85c6" }], "");
    if (table) mark(rows.variability[i], rows.mean_loss[i]);
  }

  show(0);
  on("next", "click", () => show((at + 1) % rows.id.length));
  on("previous", "click", () => show((at + rows.id.length - 1) % rows.id.length));
  await pause();

  const id = ({ i }) => String(rows.id[i]);
  table = await explore(data, {
    hoverText: (i) => hoverLabel(`id ${rows.id[i]}`, rows.text?.[i],
      epochs.map((epoch, e) => `epoch ${epoch}: ${rows.by_epoch[e][i] ?? "none"}`)),
    open: (i, isFocused) => {
      show(i);
      if (isFocused) byId("review").focus();
    },
    columns: [
      ...(rows.text ? [opener(({ i }) => rows.text[i] ?? "")] : []),
      (rows.text ? plain : opener)(id, { type: "num", className: "number" }),
      ...columns.map((column) => numbers(({ i }) => rows[column.name][i], column)),
    ],
    shows: { all: () => true, forgotten: (i) => rows.forgetting_events[i] > 0 },
    file: "samples",
  });
  show(at);
});
