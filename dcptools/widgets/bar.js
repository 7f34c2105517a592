// A progress bar that exposes its value to programs, and a live region that speaks when the kernel says so.
function render({ model, el }) {
  const done = document.createElement("div");
  const bar = document.createElement("div");
  bar.className = "dcp-progress";
  bar.append(done);
  for (const [name, value] of Object.entries({ role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 })) {
    bar.setAttribute(name, value);
  }
  const voice = document.createElement("div");
  voice.className = "dcp-voice";
  voice.setAttribute("aria-live", "polite");
  const draw = () => {
    const percent = Math.round(100 * model.get("value"));
    bar.setAttribute("aria-label", model.get("label"));
    bar.setAttribute("aria-valuenow", percent);
    bar.dataset.style = model.get("bar_style");
    done.style.width = `${percent}%`;
  };
  const speak = () => {
    voice.textContent = model.get("spoken");
  };
  model.on("change:value change:bar_style change:label", draw);
  model.on("change:spoken", speak);
  draw();
  el.append(bar, voice);
  return () => {
    model.off("change:value change:bar_style change:label", draw);
    model.off("change:spoken", speak);
  };
}

export default { render };
