"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Theme: the system's, unless it is chosen here. Where a page from disk may not store, the choice lasts as long as it.
  const root = document.documentElement, theme = document.getElementById("theme"), themes = ["system", "light", "dark"];
  const stored = {
    get() { try { return localStorage.getItem("zoo-report-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("zoo-report-theme", value); } catch { /* lasts as long as the page */ } },
  };
  const setTheme = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    theme.textContent = `Theme: ${name}`;
  };
  let current = themes.includes(stored.get()) ? stored.get() : "system";
  setTheme(current);
  theme.hidden = false;
  theme.addEventListener("click", () => {
    current = themes[(themes.indexOf(current) + 1) % themes.length];
    setTheme(current);
    stored.set(current);
  });

  // Sorting: by the values in data-value, numbers as numbers; what has none stays last. A second press turns it round.
  const valueOf = (row, index) => row.cells[index].dataset.value;
  const sortBy = (table, index) => {
    const header = table.tHead.rows[0].cells[index], numeric = header.classList.contains("number");
    const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first, sign = order === "ascending" ? 1 : -1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, two) => {
      const a = valueOf(one, index), b = valueOf(two, index);
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b));
    });
    table.tBodies[0].append(...rows);
  };

  // Filtering: every word must be in the row, and its kind must be ticked.
  const filter = (block) => {
    const words = block.querySelector(".filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const boxes = all(".kind", block), kinds = boxes.filter((box) => box.checked).map((box) => box.value);
    const rows = [...block.querySelector("tbody").rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (boxes.length > 0 && !kinds.includes(row.className));
    }
    const visible = rows.filter((row) => !row.hidden).length;
    block.querySelector(".count").textContent = `${visible} of ${rows.length} rows`;
  };
  for (const block of all(".table")) {
    all(".sort", block).forEach((button, index) => button.addEventListener("click", () => {
      sortBy(block.querySelector("table"), index);
    }));
    for (const input of all(".filter, .kind", block)) input.addEventListener("input", () => filter(block));
    filter(block);
  }

  // Records: a number opens its record in a panel; without a script its link leads to the same record below.
  const panel = document.getElementById("panel"), content = document.getElementById("panel-content");
  const open = (key) => {
    const record = document.getElementById(key);
    if (!record || !record.matches("details.record")) return false;
    document.getElementById("panel-title").textContent = record.querySelector("summary").textContent;
    content.replaceChildren(...[...record.children].slice(1).map((child) => child.cloneNode(true)));
    if (!panel.open) panel.showModal();
    panel.scrollTop = 0;
    return true;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]"), to = link && link.getAttribute("href");
    if (event.ctrlKey || event.metaKey || event.shiftKey || !to || !to.startsWith("#")) return;
    if (open(to.slice(1))) event.preventDefault();
  });
  document.getElementById("close").addEventListener("click", () => panel.close());
  panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
  if (location.hash) open(location.hash.slice(1));

  // On paper nothing can be opened: what is folded is opened, but for the records, which are the size of a book.
  window.addEventListener("beforeprint", () => all("details:not(.record)").forEach((part) => { part.open = true; }));
})();
