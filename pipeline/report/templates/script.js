// Read a curve under the pointer, or with the arrow keys: the nearest recorded point of each series.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), axis = figure.querySelector(".axis");
  const resting = axis.textContent, outputs = figure.querySelectorAll("output");
  const series = [...svg.querySelectorAll("[data-points]")].map(group => JSON.parse(group.dataset.points));
  const stops = [...new Set(series.flat().map(point => point[0]))].sort((a, b) => a - b);
  let stop = stops.length - 1;
  const read = x => {
    let at = null;
    series.forEach((points, i) => {
      const near = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      outputs[i].textContent = near[3];
      if (!at || Math.abs(near[0] - x) < Math.abs(at[0] - x)) at = near;
    });
    cursor.setAttribute("x1", at[0]); cursor.setAttribute("x2", at[0]); cursor.style.visibility = "visible";
    axis.textContent = figure.dataset.chart + " " + at[2].toLocaleString("en");
  };
  const rest = () => {
    cursor.style.visibility = "hidden"; axis.textContent = resting;
    outputs.forEach(output => { output.textContent = output.dataset.last; });
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    read((event.clientX - box.left) * svg.viewBox.baseVal.width / box.width);
  });
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("blur", rest);
  svg.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    stop = Math.max(0, Math.min(stops.length - 1, stop + way * Math.ceil(stops.length / 60)));
    read(stops[stop]);
  });
}
// A slider shows one of the frames that are there already.
for (const walk of document.querySelectorAll("[data-walk]")) {
  const slider = walk.querySelector("input"), output = walk.querySelector("output");
  const frames = walk.querySelector(".frames").children;
  slider.addEventListener("input", () => {
    [...frames].forEach((frame, i) => {
      frame.classList.toggle("on", i === +slider.value);
      if (i !== +slider.value) frame.querySelector("audio")?.pause();
    });
    output.textContent = frames[slider.value].dataset.place;
    slider.setAttribute("aria-valuetext", output.textContent);
  });
}
// A label of the map stands out alone while its key is pressed.
for (const map of document.querySelectorAll("[data-map]")) {
  const svg = map.querySelector("svg"), keys = [...map.querySelectorAll("button")];
  for (const key of keys) key.addEventListener("click", () => {
    const picked = key.getAttribute("aria-pressed") !== "true";
    keys.forEach(other => other.setAttribute("aria-pressed", picked && other === key));
    svg.classList.toggle("picked", picked);
    svg.querySelectorAll("g").forEach(group => group.classList.toggle("picked", group.dataset.key === key.dataset.key));
  });
}
// The surprise of a token under the pointer, or with the arrow keys.
for (const passage of document.querySelectorAll("[data-surprise]")) {
  const tokens = passage.querySelector(".tokens"), output = passage.querySelector("output");
  let at = null;
  const read = token => {
    at?.classList.remove("at");
    at = token;
    if (!at) { output.textContent = ""; return; }
    at.classList.add("at");
    output.textContent = at.dataset.nats || "not predicted";
  };
  tokens.addEventListener("pointerover", event => { if ("nats" in event.target.dataset) read(event.target); });
  tokens.addEventListener("pointerleave", () => read(null));
  tokens.addEventListener("blur", () => read(null));
  tokens.addEventListener("keydown", event => {
    const next = { ArrowLeft: at?.previousElementSibling, ArrowRight: at ? at.nextElementSibling : tokens.firstElementChild }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (next) { read(next); next.scrollIntoView({ block: "nearest" }); }
  });
}
