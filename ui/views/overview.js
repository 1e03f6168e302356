// A slide's overview: a click gives a place in level-0 pixels; boxes show the query and the hits on it.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".hs-overview");
  const image = root.querySelector("img");
  const marks = root.querySelector("svg");
  if (image.src !== data.image) image.src = data.image;
  image.alt = `Overview of slide ${data.slide_id}`;
  marks.setAttribute("viewBox", `0 0 ${data.width0} ${data.height0}`);
  marks.replaceChildren();
  for (const box of data.boxes) {
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    // A tile can be a few screen pixels wide: never draw it smaller than can be seen.
    const least = Math.max(data.width0, data.height0) / 90;
    const side = Math.max(box.extent_px0, least);
    mark.setAttribute("x", box.x0 + box.extent_px0 / 2 - side / 2);
    mark.setAttribute("y", box.y0 + box.extent_px0 / 2 - side / 2);
    mark.setAttribute("width", side);
    mark.setAttribute("height", side);
    mark.setAttribute("class", box.kind);
    marks.append(mark);
  }
  image.onclick = (event) => {
    const shown = image.getBoundingClientRect();
    setTriggerValue("clicked", {
      slide_id: data.slide_id,
      x0: Math.round(((event.clientX - shown.left) / shown.width) * data.width0),
      y0: Math.round(((event.clientY - shown.top) / shown.height) * data.height0),
    });
  };
}
