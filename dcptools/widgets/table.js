// The table of dcptools: a screen of rows at a time, asked of the kernel as they come into view.
// Names come from files that nobody vouches for, so text is only ever set as textContent.

const ROW = 26; // pixels, as in table.css
const AHEAD = 12; // rows that are drawn above and below what is seen
const PAGE = 100; // rows that are asked for at once
const KEPT = 40; // pages
const TAIL = 24; // characters at the end of a name that stay when its middle is left out
const INDENT = 16; // pixels of a level of the tree, and of what opens it
const SHOWN_CHIPS = 6; // of a column, before "more"
const NAME = 340; // pixels that a name has where there is room: its layer and its last words
const TIGHT = 216; // pixels that a name has at least, where all columns fit then
const WAIT = 120; // ms after the last key stroke

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const number = new Intl.NumberFormat("en-US");
const plural = (n, noun) => `${number.format(n)} ${noun}${n === 1 ? "" : "s"}`;

// JupyterLab moves to another cell by the arrow keys, which change the drop-downs beside a table.
function keepKeys({ target }) {
  if (target.matches("select")) target.dataset.lmSuppressShortcuts = "true";
}

function render({ model, el }) {
  const id = `dcp-table-${Math.random().toString(36).slice(2)}`; // each widget loads this module anew: a count would not do
  const view = {
    pages: new Map(), // first row -> rows
    asked: new Set(), // pages that are on their way
    active: -1, // the row that the arrow keys stand on
    widths: null, // pixels, once somebody dragged
    drawn: "", // what was drawn last, to draw nothing twice
    more: new Set(), // columns whose chips are all shown
    download: [],
    waiting: false, // for the row that was chosen
  };
  const answer = () => model.get("answer");
  const head = () => model.get("head");
  const columns = () => (answer().tree && head().tree) || head().columns;
  const send = (kind, content = {}) => model.send({ kind, version: answer().version, ...content });
  const ask = (changes) => {
    root.setAttribute("aria-busy", "true");
    send("ask", changes);
  };

  // --- the parts

  const search = make("input", {
    type: "search", class: "dcp-search", placeholder: `Search ${head().noun}s`, "aria-label": `Search ${head().noun}s`,
    spellcheck: "false", autocomplete: "off",
  });
  const regex = make("button", {
    type: "button", class: "dcp-toggle", text: ".*", title: "Search by regular expression",
    "aria-label": "Regular expression", "aria-pressed": "false",
  });
  const tree = make("button", { type: "button", class: "dcp-toggle", text: "Tree", "aria-pressed": "false" });
  const expand = make("button", { type: "button", class: "dcp-plain", text: "Expand all" });
  const collapse = make("button", { type: "button", class: "dcp-plain", text: "Collapse all" });
  const csv = make("button", {
    type: "button", class: "dcp-plain", text: "CSV", title: "Download the rows that match, as CSV",
    "aria-label": "Download as CSV",
  });
  const status = make("span", { role: "status", class: "dcp-status" });
  const bar = make("div", { class: "dcp-bar" }, search, regex, tree, expand, collapse, status, csv);
  const chips = make("div", { class: "dcp-chips" });
  const widths = make("colgroup");
  const heading = make("tr", { "aria-rowindex": 1 });
  const above = make("tr", { class: "dcp-pad" });
  const below = make("tr", { class: "dcp-pad" });
  const body = make("tbody");
  const table = make(
    "table", { role: "grid", tabindex: "0", "aria-label": `Table of ${head().noun}s` },
    widths, make("thead", {}, heading), make("tbody", { "aria-hidden": "true" }, above), body,
    make("tbody", { "aria-hidden": "true" }, below),
  );
  const scroller = make("div", { class: "dcp-rows" }, table);
  // JupyterLab has shortcuts of its own for the arrow keys
  const names = new WeakMap(); // what stands in a cell with a name, for other widths
  const pen = document.createElement("canvas").getContext("2d");
  const root = make("div", { class: "dcp-table", "data-lm-suppress-shortcuts": "true" }, bar, chips, scroller);
  el.append(root);

  // --- rows

  const rowAt = (index) => view.pages.get(index - (index % PAGE))?.[index % PAGE];

  function keep(first, rows) {
    view.pages.set(first, rows);
    view.asked.delete(first);
    for (const old of view.pages.keys()) {
      if (view.pages.size <= KEPT) break;
      if (old !== first) view.pages.delete(old);
    }
  }

  function fetch(from, to) {
    for (let first = from - (from % PAGE); first < to; first += PAGE) {
      const whole = Math.min(PAGE, answer().shown - first);
      if (view.asked.has(first) || (view.pages.get(first)?.length ?? 0) >= whole) continue;
      view.asked.add(first);
      send("rows", { first });
    }
  }

  function draw() {
    const { shown = 0, stale } = answer();
    if (stale) return;
    const visible = Math.ceil(scroller.clientHeight / ROW);
    const top = Math.floor(scroller.scrollTop / ROW);
    const from = Math.max(0, top - AHEAD);
    const to = Math.min(shown, top + visible + AHEAD);
    fetch(from, to);
    const rows = [];
    for (let index = from; index < to; index++) rows.push(rowAt(index));
    const drawn = [answer().version, from, to, view.active, rows.filter(Boolean).length].join();
    if (drawn === view.drawn) return;
    view.drawn = drawn;
    pad(above, from);
    pad(below, shown - to);
    body.replaceChildren(...rows.map((row, offset) => drawRow(row, from + offset)));
    if (!view.widths && rows[0]) layOut(rows);
    fit();
    const active = view.active >= from && view.active < to ? `${id}-${view.active}` : null;
    if (active) table.setAttribute("aria-activedescendant", active);
    else table.removeAttribute("aria-activedescendant");
  }

  // The room of rows that are not drawn, in a cell below each heading: a row without cells would cut those off from theirs.
  function pad(tr, rows) {
    tr.replaceChildren(make("td", { colspan: columns().length, style: `height: ${rows * ROW}px` }));
  }

  function drawRow(row, index) {
    const chosen = index === view.active;
    const tr = make("tr", {
      role: "row", id: `${id}-${index}`, "aria-rowindex": index + 2, "aria-selected": String(chosen),
      "data-index": index,
    });
    if (!row) {
      tr.append(make("td", { colspan: columns().length, class: "dcp-soon", text: "…" }));
      return tr;
    }
    if (row.level) {
      tr.setAttribute("aria-level", row.level);
      if (row.open !== null) tr.setAttribute("aria-expanded", row.open);
    }
    columns().forEach((column, number) => tr.append(drawCell(row, column, number)));
    return tr;
  }

  function drawCell(row, column, number) {
    const text = row.cells[number];
    const td = make("td", { role: "gridcell", class: column.numeric ? "dcp-number" : null, title: text || null });
    if (!column.elide) {
      td.textContent = text;
      return td;
    }
    td.classList.add("dcp-name");
    const letters = Array.from(text);
    const [middle, cut] = cuts(letters);
    const marks = row.marks?.[number] ?? [];
    const box = make("div", { class: "dcp-elide" });
    if (row.level && number === 0) {
      box.style.paddingInlineStart = `${(row.level - 1) * INDENT}px`;
      box.append(make("span", { class: "dcp-twisty", "aria-hidden": "true", text: { true: "▾", false: "▸" }[row.open] ?? "" }));
    }
    const name = make("span", { class: "dcp-letters" });
    box.append(name);
    names.set(box, { name, letters, middle, cut, marks, used: row.level && number === 0 ? row.level * INDENT : 0, room: -1 });
    if (text) {
      box.append(make("button", {
        type: "button", class: "dcp-copy", tabindex: "-1", text: "Copy", title: "Copy (c)", "aria-label": `Copy ${text}`,
        "data-copy": text,
      }));
    }
    td.setAttribute("aria-label", text);
    td.append(box);
    return td;
  }

  // Where there is no room, the beginning of a name goes first, then what follows its last number (the layer), and its
  // end never: there names differ.
  function cuts(letters) {
    const cut = letters.length - Math.min(TAIL, Math.floor(letters.length / 2));
    const numbers = [...letters.join("").matchAll(/(?<=\.)\d+\./g)].map((found) => found.index);
    const last = numbers.length && letters.length === letters.join("").length ? numbers[numbers.length - 1] : 0;
    return [last > 8 && last < cut ? last : cut, cut];
  }

  // Names as far as there is room for them. What is left out stays in the page without a size, for who copies it.
  function fit() {
    const boxes = [...body.querySelectorAll(".dcp-elide")];
    if (!boxes.length) return;
    pen.font = getComputedStyle(boxes[0]).font;
    const letter = pen.measureText("0".repeat(100)).width / 100;
    const rooms = boxes.map((box) => Math.floor((box.clientWidth - names.get(box).used) / letter));
    boxes.forEach((box, number) => {
      const shown = names.get(box);
      if (shown.room === rooms[number]) return;
      shown.room = rooms[number];
      shown.name.replaceChildren(...lettersOf(shown));
    });
  }

  function lettersOf({ letters, middle, cut, marks, room }) {
    const all = letters.length;
    const spare = all <= room ? middle : room - 1 - (all - middle); // letters of the head that have room
    const head = Math.max(0, spare);
    const rest = spare >= 0 ? cut : Math.max(middle, Math.min(cut, middle + room - 2 - (all - cut)));
    const parts = [[0, head], [head, middle, "dcp-out"], [middle, rest], [rest, cut, "dcp-out"], [cut, all]];
    return parts.filter(([from, to]) => from < to)
      .map(([from, to, out]) => make("span", { class: out }, ...painted(letters, from, to, marks)));
  }

  function painted(letters, from, to, marks) {
    const parts = [];
    let at = from;
    for (const [start, stop] of marks) {
      const [a, b] = [Math.max(start, from), Math.min(stop, to)];
      if (a >= b) continue;
      if (a > at) parts.push(letters.slice(at, a).join(""));
      parts.push(make("mark", { text: letters.slice(a, b).join("") }));
      at = b;
    }
    if (at < to) parts.push(letters.slice(at, to).join(""));
    return parts;
  }

  // --- columns

  function layOut(rows) {
    // long names and sentences share what the others leave; a letter is about seven pixels wide
    const room = Math.min(NAME, Math.max(200, scroller.clientWidth / 2)); // so that the next column is in sight, too
    const cols = columns().map((column, number) => {
      const texts = rows.filter(Boolean).map((row) => row.cells[number].length + 3 * (row.level ?? 0));
      const width = Math.round(Math.max(column.label.length + 2, ...texts) * 7 + 18);
      if (!column.elide && !column.prose) return Math.min(260, Math.max(52, width));
      return width < NAME / 2 && number > 0 ? Math.max(120, width) : null;
    });
    const names = cols.filter((width) => width === null).length;
    const others = cols.reduce((sum, width) => sum + (width ?? 0), 0);
    const fits = others + names * TIGHT <= scroller.clientWidth;
    widths.replaceChildren(...cols.map((width) => {
      const col = make("col");
      if (width !== null) col.style.width = `${width}px`;
      return col;
    }));
    table.style.width = "100%";
    table.style.minWidth = fits ? "0" : `${others + names * room}px`;
  }

  function resize(number, width) {
    view.widths ??= [...heading.children].map((th) => th.getBoundingClientRect().width);
    view.widths[number] = Math.max(48, Math.round(width));
    widths.replaceChildren(...view.widths.map((each) => {
      const col = make("col");
      col.style.width = `${each}px`;
      return col;
    }));
    table.style.minWidth = "0";
    table.style.width = `${view.widths.reduce((sum, each) => sum + each, 0)}px`;
    fit();
  }

  function drawHeading() {
    const { query, tree: isTree } = answer();
    heading.replaceChildren(...columns().map((column, number) => {
      const sorted = !isTree && query.sort === column.name;
      const order = sorted ? (query.descending ? "descending" : "ascending") : isTree ? null : "none";
      const arrow = sorted ? (query.descending ? "▼" : "▲") : "";
      const button = make(
        "button", { type: "button", class: "dcp-sort", disabled: isTree, "data-column": number, title: column.label },
        make("span", { class: "dcp-label", text: column.label }),
        make("span", { class: "dcp-arrow", "aria-hidden": "true", text: arrow }),
      );
      const handle = make("span", { class: "dcp-handle", "aria-hidden": "true", title: "Drag, or Alt and an arrow key" });
      button.addEventListener("click", () => {
        const descending = sorted ? !query.descending : column.numeric;
        ask({ sort: column.name, descending });
      });
      button.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -16, ArrowRight: 16 }[event.key];
        if (!step || !event.altKey) return;
        event.preventDefault();
        resize(number, heading.children[number].getBoundingClientRect().width + step);
      });
      handle.addEventListener("pointerdown", (event) => drag(event, handle, number));
      handle.addEventListener("dblclick", () => {
        view.widths = null;
        view.drawn = "";
        draw();
      });
      const th = make("th", { scope: "col", role: "columnheader", "aria-sort": order }, button, handle);
      if (column.numeric) th.classList.add("dcp-number");
      if (column.elide) th.classList.add("dcp-name");
      return th;
    }));
  }

  function drag(event, handle, number) {
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    const start = event.clientX - heading.children[number].getBoundingClientRect().width;
    const move = (moved) => resize(number, moved.clientX - start);
    handle.addEventListener("pointermove", move);
    handle.addEventListener("lostpointercapture", () => handle.removeEventListener("pointermove", move), { once: true });
  }

  // --- filters

  function drawChips() {
    const { counts = {}, query } = answer();
    const focused = chips.contains(document.activeElement) ? document.activeElement.dataset.chip : null;
    const groups = head().columns.filter((column) => counts[column.name]?.length).map((column) => {
      const chosen = query.chips[column.name] ?? [];
      const all = counts[column.name];
      const shown = view.more.has(column.name) ? all : all.filter(([kind], i) => i < SHOWN_CHIPS || chosen.includes(kind));
      const group = make("div", { role: "group", "aria-label": `Filter by ${column.label}`, class: "dcp-group" });
      group.append(make("span", { class: "dcp-group-name", text: column.label }));
      for (const [kind, rows] of shown) group.append(chip(column.name, kind, rows, chosen));
      if (shown.length < all.length) {
        const rest = make("button", { type: "button", class: "dcp-plain", text: `${all.length - shown.length} more` });
        rest.addEventListener("click", () => { view.more.add(column.name); drawChips(); });
        group.append(rest);
      }
      return group;
    });
    if (answer().only) groups.unshift(make("div", { class: "dcp-group" }, only()));
    chips.replaceChildren(...groups);
    if (focused) [...chips.querySelectorAll("[data-chip]")].find((each) => each.dataset.chip === focused)?.focus();
  }

  // Rows that somebody asked to see alone; a click shows all again.
  function only() {
    const button = make(
      "button", { type: "button", class: "dcp-chip", "aria-pressed": "true", "data-chip": "only", title: "Show all rows" },
      make("span", { text: `Only ${answer().only}`, class: "dcp-kind" }), " ",
      make("span", { class: "dcp-count", "aria-hidden": "true", text: "✕" }),
    );
    button.addEventListener("click", () => ask({ only: "" }));
    return button;
  }

  function chip(name, kind, rows, chosen) {
    const pressed = chosen.includes(kind);
    const button = make(
      "button", { type: "button", class: "dcp-chip", "aria-pressed": String(pressed), "data-chip": `${name} ${kind}` },
      make("span", { text: kind, title: kind, class: "dcp-kind" }), " ",
      make("span", { class: "dcp-count", text: number.format(rows) }),
    );
    button.addEventListener("click", () => {
      const kinds = pressed ? chosen.filter((each) => each !== kind) : [...chosen, kind];
      ask({ chips: { ...answer().query.chips, [name]: kinds } });
    });
    return button;
  }

  // --- what was answered

  function update() {
    const { stale, version, found = 0, total = 0, shown = 0, rows = [], query, error, at, tree: isTree } = answer();
    view.pages.clear();
    view.asked.clear();
    view.drawn = "";
    root.setAttribute("aria-busy", Boolean(stale && visible));
    if (document.activeElement !== search && search.value !== query.search) search.value = query.search;
    regex.setAttribute("aria-pressed", query.regex);
    search.setAttribute("aria-invalid", Boolean(error));
    tree.hidden = !head().tree;
    expand.hidden = collapse.hidden = !isTree;
    tree.setAttribute("aria-pressed", isTree);
    if (stale) {
      view.active = -1;
      body.replaceChildren();
      status.textContent = "…";
      drawHeading();
      if (visible) send("look");
      return;
    }
    if (rows.length) view.pages.set(0, rows);
    const asked = JSON.stringify([query, isTree, answer().only]);
    const another = asked !== view.query;
    if (isTree !== view.tree || view.widths?.length !== columns().length) view.widths = null;
    [view.query, view.tree] = [asked, isTree];
    if (another) scroller.scrollTop = 0;
    if (another || !isTree) view.active = at;
    if (view.active >= shown) view.active = shown - 1;
    const words = found === total ? plural(total, head().noun) : `${number.format(found)} of ${plural(total, head().noun)}`;
    status.textContent = error || (isTree ? `${words}, ${plural(shown, "row")} shown` : words);
    status.classList.toggle("dcp-wrong", Boolean(error));
    table.setAttribute("role", isTree ? "treegrid" : "grid");
    table.setAttribute("aria-rowcount", shown + 1);
    scroller.style.setProperty("--dcp-rows", Math.min(14, Math.max(3, isTree ? 14 : total)));
    drawHeading();
    drawChips();
    draw();
  }

  function received(message, buffers) {
    if (message.kind === "rows" && message.version === answer().version) {
      keep(message.first, message.rows);
      draw();
      if (view.waiting && rowAt(view.active)) go(view.active);
    } else if (message.kind === "csv") {
      download(message, buffers[0]);
    }
  }

  async function download({ done, of }, buffer) {
    const packed = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"));
    view.download.push(await new Response(packed).text());
    if (done < of) {
      status.textContent = `CSV: ${number.format(done)} of ${number.format(of)}`;
      send("csv", { first: done });
      return;
    }
    const url = URL.createObjectURL(new Blob(view.download, { type: "text/csv" }));
    view.download = [];
    make("a", { href: url, download: `${head().noun}s.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    status.textContent = `CSV with ${plural(of, head().noun)} saved`;
  }

  function revealed() {
    const { index } = model.get("reveal");
    if (index === undefined || index < 0) return;
    go(index, false);
  }

  // --- choosing

  let choosing = 0;

  function go(index, tell = true) {
    const { shown = 0, version, frame } = answer();
    if (!shown) return;
    view.active = Math.min(Math.max(0, index), shown - 1);
    const [top, bottom] = [view.active * ROW, (view.active + 1) * ROW];
    const room = scroller.clientHeight - heading.offsetHeight - 2;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + room) scroller.scrollTop = bottom - room;
    draw();
    if (!tell) return;
    clearTimeout(choosing);
    const row = rowAt(view.active);
    view.waiting = !row; // far away, as after End: it is chosen when it has come
    if (row) choosing = setTimeout(() => send("choose", { id: row.id, version, frame }), WAIT);
  }

  function open(row) {
    send("open", { id: row.id, frame: answer().frame });
  }

  function toggle(row) {
    send("toggle", { path: row.path, open: !row.open });
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", { class: "dcp-hidden" });
      area.value = text;
      root.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      table.focus({ preventScroll: true });
    }
    status.textContent = `Copied ${text}`;
  }

  function pressed(event) {
    if (event.target !== table || event.altKey || event.metaKey) return;
    if (event.ctrlKey && !["c", "Home", "End"].includes(event.key)) return; // with or without: the first and the last row
    const row = rowAt(view.active);
    const screen = Math.max(1, Math.floor((scroller.clientHeight - heading.offsetHeight) / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: screen, PageUp: -screen };
    if (event.key in steps) go(view.active < 0 ? 0 : view.active + steps[event.key]);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(answer().shown - 1);
    else if (event.key === "Enter" && row) row.open === true || row.open === false ? toggle(row) : open(row);
    else if (event.key === "c" && row) copy(row.cells[columns().findIndex((column) => column.elide)]);
    else if (event.key === "ArrowRight" && row?.open === false) toggle(row);
    else if (event.key === "ArrowRight" && row?.open) go(view.active + 1);
    else if (event.key === "ArrowLeft" && row?.open) toggle(row);
    else if (event.key === "ArrowLeft" && row?.level > 1) go(parent(row));
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") scroller.scrollBy({ left: event.key === "ArrowLeft" ? -80 : 80 });
    else if (event.key === "/") search.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function parent(row) {
    for (let index = view.active - 1; index >= 0; index--) {
      if ((rowAt(index)?.level ?? Infinity) < row.level) return index;
    }
    return 0;
  }

  // --- events

  let typing = 0;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => ask({ search: search.value }), WAIT);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") {
      event.preventDefault();
      table.focus({ preventScroll: true });
      if (view.active < 0) go(0);
    }
  });
  regex.addEventListener("click", () => ask({ regex: !answer().query.regex }));
  tree.addEventListener("click", () => ask({ tree: !answer().tree }));
  expand.addEventListener("click", () => send("expand", { all: true }));
  collapse.addEventListener("click", () => send("expand", { all: false }));
  csv.addEventListener("click", () => {
    view.download = [];
    send("csv", { first: 0 });
  });
  table.addEventListener("keydown", pressed);
  body.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    const tr = event.target.closest("tr[data-index]");
    if (button) copy(button.dataset.copy);
    else if (tr) {
      const index = Number(tr.dataset.index);
      const row = rowAt(index);
      if (event.target.closest(".dcp-twisty") && row && row.open !== null) toggle(row);
      else go(index);
      table.focus({ preventScroll: true });
    }
  });
  body.addEventListener("dblclick", (event) => {
    const tr = event.target.closest("tr[data-index]");
    if (!tr || event.target.closest("button")) return;
    const index = Number(tr.dataset.index);
    const row = rowAt(index);
    if (row?.level && row.open !== null) toggle(row);
    else if (row) open(row);
  });
  let frame = 0;
  scroller.addEventListener("scroll", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  });

  // Nothing is asked for before the table is shown: in a tab, or a step, that is hidden it has no size.
  let visible = false;
  const sized = new ResizeObserver(() => {
    visible = scroller.offsetWidth > 0;
    if (!visible) return;
    root.closest(".dcptools")?.addEventListener("focusin", keepKeys);
    view.drawn = "";
    if (answer().stale) send("look");
    else draw();
  });
  sized.observe(scroller);
  model.on("change:answer", update);
  model.on("change:reveal", revealed);
  model.on("msg:custom", received);
  update();
  return () => {
    sized.disconnect();
    model.off("change:answer", update);
    model.off("change:reveal", revealed);
    model.off("msg:custom", received);
  };
}

export default { render };
