// The folders of one place, to choose one of: by mouse, or by arrow keys, Enter and Escape.
// Names come from a disk or a bucket that nobody vouches for, so text is only ever set as textContent.

const PAGE = 8; // folders, by Page Up and Page Down
const TYPING = 700; // ms between letters of one name

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function render({ model, el }) {
  const id = `dcp-folders-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  let active = -1; // the folder that is chosen; -1: the place itself
  let known = ""; // the folders that are shown
  let letters = { text: "", at: 0 };
  const entries = () => model.get("entries");
  const send = (kind, content = {}) => model.send({ kind, at: active, ...content });
  const button = (text, onclick) => make("button", { type: "button", text, onclick });

  const here = make("div", { class: "dcp-here", id: `${id}-here` });
  const list = make("div", { role: "listbox", tabindex: "0", "aria-labelledby": `${id}-here`, class: "dcp-folders-list" });
  const note = make("div", { role: "status", class: "dcp-folders-note" });
  const up = button("Up", () => send("up"));
  const enter = button("Open folder", () => send("enter"));
  const take = button("Choose", () => send("take"));
  take.className = "dcp-primary";
  const close = button("Close", () => done("close"));
  const name = make("input", { type: "text", placeholder: "new folder", "aria-label": "Name of a new folder", spellcheck: "false" });
  const named = button("Use new folder", () => done("name", { name: name.value }));
  const fresh = make("span", { class: "dcp-fresh" }, name, named);
  const bar = make("div", { class: "dcp-folders-bar" }, up, enter, take, fresh, close);
  const root = make("div", { class: "dcp-folders", role: "group", "data-lm-suppress-shortcuts": "true" }, here, list, note, bar);
  root.setAttribute("aria-label", `Folders for ${model.get("label")}`);

  // The focus goes back to where the list was asked for.
  const asked = () => el.closest(".dcp-chooser")?.querySelector("button.dcp-browse");
  const done = (kind, content) => {
    send(kind, content);
    asked()?.focus();
  };

  function mark() {
    [...list.children].forEach((row, n) => row.setAttribute("aria-selected", String(n === active)));
    const row = list.children[active];
    if (row) {
      list.setAttribute("aria-activedescendant", row.id);
      row.scrollIntoView({ block: "nearest" });
    } else list.removeAttribute("aria-activedescendant");
    enter.disabled = !row;
    take.textContent = row ? `Choose ${entries()[active][0]}` : "Choose this folder";
  }

  function draw() {
    root.hidden = !model.get("shown");
    here.textContent = model.get("here");
    note.textContent = model.get("note");
    note.hidden = !model.get("note");
    fresh.hidden = !model.get("renames");
    const rows = entries().map(([text, what], n) => {
      const row = make("div", {
        role: "option", id: `${id}-${n}`, title: text, onclick: () => move(n), ondblclick: () => act(n),
      }, make("span", { text: `${text}/`, class: "dcp-folder" }));
      if (what) row.append(make("span", { text: what, class: "dcp-what" }));
      return row;
    });
    list.replaceChildren(...rows);
    list.setAttribute("role", rows.length ? "listbox" : "group"); // a list box has options
    mark();
  }

  function move(to) {
    active = Math.max(-1, Math.min(to, entries().length - 1));
    mark();
  }

  // Enter: take what is looked for, and go into any other folder.
  function act(n) {
    move(n);
    if (active < 0 || entries()[active][1]) done("take");
    else send("enter");
  }

  function typed(letter) {
    const now = Date.now();
    letters = { text: (now - letters.at < TYPING ? letters.text : "") + letter.toLowerCase(), at: now };
    const found = entries().findIndex(([text]) => text.toLowerCase().startsWith(letters.text));
    if (found >= 0) move(found);
  }

  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = entries().length - 1;
    const keys = {
      ArrowDown: () => move(active + 1), ArrowUp: () => move(Math.max(0, active - 1)), Home: () => move(0),
      End: () => move(last), PageDown: () => move(active + PAGE), PageUp: () => move(Math.max(0, active - PAGE)),
      Enter: () => act(active), ArrowRight: () => active >= 0 && send("enter"), ArrowLeft: () => send("up"),
      Backspace: () => send("up"),
    };
    if (keys[event.key]) keys[event.key]();
    else if (event.key.length === 1) typed(event.key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") done("close");
    else if (event.key === "Enter" && event.target === name) done("name", { name: name.value });
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const opened = () => {
    draw();
    if (model.get("shown")) list.focus();
  };
  const listed = () => {
    const names = JSON.stringify([model.get("here"), entries().map(([text]) => text)]);
    if (names !== known) active = model.get("at"); // else only what the folders are has come
    known = names;
    draw();
  };
  model.on("change:shown", opened);
  model.on("change:entries", listed);
  model.on("change:here", draw);
  model.on("change:note", draw);
  el.append(root);
  listed();
  return () => {
    model.off("change:shown", opened);
    model.off("change:entries", listed);
    model.off("change:here", draw);
    model.off("change:note", draw);
  };
}

export default { render };
