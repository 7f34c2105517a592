// A slider over powers of ten: the browser's own, with a name, and its value in words.
const STEP = 0.05; // powers of ten

function render({ model, el }) {
  const label = document.createElement("label");
  const range = document.createElement("input");
  range.type = "range";
  range.id = `dcp-slider-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  range.step = STEP;
  label.htmlFor = range.id;
  const draw = () => {
    label.textContent = model.get("description");
    range.min = model.get("low");
    range.max = model.get("high");
    if (!range.matches(":focus")) range.value = Math.log10(model.get("value")); // else an answer undoes the next key
    range.disabled = model.get("disabled");
    range.setAttribute("aria-valuetext", model.get("words"));
  };
  range.addEventListener("change", () => {
    model.set("value", 10 ** Number(range.value));
    model.save_changes();
  });
  range.addEventListener("keydown", (event) => event.stopPropagation());
  const root = document.createElement("div");
  root.className = "dcp-slider";
  root.dataset.lmSuppressShortcuts = "true";
  root.append(label, range);
  model.on("change", draw);
  draw();
  el.append(root);
  return () => model.off("change", draw);
}

export default { render };
