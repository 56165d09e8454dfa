"use strict";
(() => {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const colours = bytes(JSON.parse(document.getElementById("colours").textContent));
  const tip = document.getElementById("tip");

  const say = (text, event) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = Math.max(4, event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 8 : event.clientY + 18) + "px";
  };
  const hush = () => { tip.hidden = true; };

  for (const shape of document.querySelectorAll("[data-tip]")) {
    const title = shape.querySelector(":scope > title");
    if (title) title.remove();  // the browser's own tip is for pages without a script
    shape.addEventListener("pointermove", (event) => say(shape.dataset.tip, event));
    shape.addEventListener("pointerleave", hush);
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });

  for (const figure of document.querySelectorAll("figure[data-map]")) {
    const data = JSON.parse(document.getElementById(figure.dataset.run + "-maps").textContent)[figure.dataset.map];
    const image = figure.querySelector("svg image");  // the map; the colour bar's comes after it
    const select = figure.querySelector("select");
    const output = figure.querySelector("output");
    const size = data.steps.length;
    let levels = bytes(data.maps[0]);
    // Upper triangle, row by row.
    const level = (a, b) => {
      const i = Math.min(a, b), j = Math.max(a, b);
      return levels[i * size - i * (i - 1) / 2 + j - i];
    };
    const distance = (a, b) => (level(a, b) / 255 * data.top).toFixed(3);

    const show = () => {
      levels = bytes(data.maps[Number(select.value)]);
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = size;
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(size, size);
      // Row 0 is the first step: the figure itself turns its image upside down.
      for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++) {
          pixels.data.set(colours.subarray(3 * level(x, y), 3 * level(x, y) + 3), 4 * (y * size + x));
          pixels.data[4 * (y * size + x) + 3] = 255;
        }
      }
      context.putImageData(pixels, 0, 0);
      image.setAttribute("href", canvas.toDataURL());
      image.removeAttributeNS("http://www.w3.org/1999/xlink", "href");
      const first = data.steps[0], last = data.steps[size - 1];
      output.textContent = (select.value === "0" ? "All layers" : "Layer " + select.value) +
        `: steps ${first} and ${last} differ by ${distance(0, size - 1)}.`;
    };
    select.addEventListener("change", show);

    image.addEventListener("pointermove", (event) => {
      const box = image.getBoundingClientRect();
      const clip = (share) => Math.max(0, Math.min(size - 1, Math.floor(share * size)));
      const x = clip((event.clientX - box.left) / box.width);
      const y = clip(1 - (event.clientY - box.top) / box.height);
      say(`after ${data.steps[x]} and ${data.steps[y]} steps: ${distance(x, y)}`, event);
    });
    image.addEventListener("pointerleave", hush);
  }
})();
