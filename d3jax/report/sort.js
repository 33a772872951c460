"use strict";
// Lets a click on a column's head (or Enter on it) sort a table of class "sortable": down, up, and back as it was.
// Rows move inside their own tbody, after its heading (class "group"). A cell sorts by data-v where it has one.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const text = (cell ? cell.dataset.v ?? cell.textContent : "").trim();
  return text === "" || text === "–" ? null : isNaN(text) ? text : Number(text);
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies].map((body) => [body, [...body.rows]]);
  heads.forEach((head, column) => {
    const sort = () => {
      const order = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort];
      heads.forEach((other) => (other.ariaSort = "none"));
      head.ariaSort = order;
      for (const [body, rows] of bodies) {
        const first = rows.filter((row) => row.classList.contains("group"));
        let rest = rows.filter((row) => !row.classList.contains("group"));
        if (order !== "none") {
          const known = rest.filter((row) => valueOf(row, column) !== null);
          known.sort((a, b) => compare(valueOf(a, column), valueOf(b, column)));
          if (order === "descending") known.reverse();
          rest = [...known, ...rest.filter((row) => valueOf(row, column) === null)];
        }
        body.append(...first, ...rest);
      }
    };
    head.ariaSort = "none";
    head.tabIndex = 0;
    head.title = "Sort by this column";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
