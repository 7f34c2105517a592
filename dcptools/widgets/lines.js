// Lines to copy. They hold names from files that nobody vouches for, so text is only ever set as textContent.

async function copied(text, root) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    root.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab has shortcuts of its own
  el.append(root);

  function line({ name, text, where }) {
    const label = Object.assign(document.createElement("span"), { className: "dcp-line-name", textContent: where });
    const code = Object.assign(document.createElement("pre"), { className: "dcp", textContent: text, tabIndex: 0 });
    code.dataset.testid = name;
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Copy" });
    button.setAttribute("aria-label", `Copy the line for ${where}`);
    button.addEventListener("click", async () => {
      await copied(text, root);
      button.textContent = "Copied";
      button.focus();
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    const row = Object.assign(document.createElement("div"), { className: "dcp-line" });
    row.append(label, code, button);
    return row;
  }

  function update() {
    root.replaceChildren(...model.get("lines").map(line));
  }

  model.on("change:lines", update);
  update();
  return () => model.off("change:lines", update);
}

export default { render };
