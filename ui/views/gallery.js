// The hits as pictures; a click on one gives its tile key.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".hs-gallery");
  root.replaceChildren();
  for (const hit of data.hits) {
    const card = document.createElement("button");
    card.type = "button";
    card.className = "hs-card";
    card.title = "Search from this tile";
    const image = document.createElement("img");
    image.src = hit.image;
    image.alt = `Hit ${hit.rank}: slide ${hit.slide_id}`;
    const name = document.createElement("span");
    name.className = "hs-name";
    name.textContent = `${hit.rank}. ${hit.slide_id}`;
    const distance = document.createElement("span");
    distance.className = "hs-distance";
    distance.textContent = hit.caption;
    card.append(image, name, distance);
    card.onclick = () => setTriggerValue("picked", hit.tile_key);
    root.append(card);
  }
}
