"use strict";
(() => {
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
  };

  const sortBy = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const head = heads[column];
    // The first click sorts figures from the highest and names from A.
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((item) => item.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const isKnown = (value) => value !== "" && value !== "–";
    const body = table.tBodies[0];
    [...body.rows]
      .map((row) => [valueOf(row, column), row])
      .sort(([a], [b]) => {
        // Unknown values come last in either order.
        if (!isKnown(a) || !isKnown(b)) return isKnown(b) - isKnown(a);
        const difference = Number(a) - Number(b);
        return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
      })
      .forEach(([, row]) => body.append(row));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) =>
      head.querySelector("button").addEventListener("click", () => sortBy(table, column)));
  }

  const form = document.getElementById("controls");
  const rows = [...document.getElementById("lines").tBodies[0].rows];
  const filter = () => {
    const words = document.getElementById("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) &&
        chosen.every((select) => row.dataset[select.dataset.key] === select.value);
      row.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = `${shown} of ${rows.length} lines`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
