// A slider over powers of ten that has a name, and says its value in words: that of ipywidgets has neither.

function render({ model, el }) {
  const id = `dcp-slider-${Math.random().toString(36).slice(2)}`;
  const label = document.createElement("label");
  Object.assign(label, { className: "widget-label", htmlFor: id, textContent: model.get("description") });
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id, className: "dcp-range" });
  const row = document.createElement("div");
  row.className = "jupyter-widgets widget-inline-hbox dcp-slider";
  row.append(label, input);
  el.append(row);

  function show() {
    for (const name of ["min", "max", "step"]) input[name] = model.get(name);
    input.value = Math.log10(model.get("value"));
    input.setAttribute("aria-valuetext", model.get("words"));
    input.disabled = model.get("disabled");
  }
  input.addEventListener("change", () => {
    model.set("value", 10 ** Number(input.value));
    model.save_changes();
  });
  const shown = ["value", "words", "disabled"].map((name) => `change:${name}`);
  shown.forEach((name) => model.on(name, show));
  show();
  return () => shown.forEach((name) => model.off(name, show));
}

export default { render };
