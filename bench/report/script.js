"use strict";
// Filters hide whatever is not of the chosen kind; headings sort the table.
const facets = ["o", "p", "d", "s", "v"];
const marked = [...document.querySelectorAll("[data-f]")];
const search = document.getElementById("search");

function filter() {
  const chosen = {};
  for (const select of document.querySelectorAll("[data-facet]")) {
    if (select.value) chosen[select.dataset.facet] = select.value;
  }
  const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
  for (const each of marked) {
    const values = each.dataset.f.split("|");
    let shown = facets.every((facet, i) => !(facet in chosen) || chosen[facet] === values[i]);
    if (shown && words.length && each.tagName === "TR" && each.closest("#cells")) {
      const text = each.textContent.toLowerCase();
      shown = words.every((word) => text.includes(word));
    }
    if (each instanceof SVGElement) each.style.display = shown ? "" : "none";
    else each.hidden = !shown;
  }
}
for (const select of document.querySelectorAll("[data-facet]")) select.addEventListener("change", filter);
if (search) search.addEventListener("input", filter);

function key(row, column) {
  const cell = row.cells[column];
  if (!cell.hasAttribute("data-n")) return cell.textContent;
  return cell.dataset.n === "" ? NaN : Number(cell.dataset.n);
}
const table = document.getElementById("cells");
const heads = table ? [...table.tHead.rows[0].cells] : [];
heads.forEach((head, column) => head.addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const sign = down ? -1 : 1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row, column), row]);
  rows.sort(([a], [b]) => {
    if (typeof a === "string") return sign * a.localeCompare(b);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  });
  body.append(...rows.map(([, row]) => row));
}));
