for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const text = head.classList.contains("text");
    const falling = head.ariaSort ? head.ariaSort === "ascending" : !text;
    const order = (a, b) => text ? value(a, column).localeCompare(value(b, column))
      : (parseFloat(value(a, column)) || 0) - (parseFloat(value(b, column)) || 0);
    body.append(...[...body.rows].sort((a, b) => falling ? order(b, a) : order(a, b)));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }));
}
