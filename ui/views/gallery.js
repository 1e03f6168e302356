// Tiles as pictures: a click on one, and the buttons below it, tell what to do with which tile.
const WORDS = {
  show: "Show in its slide",
  search: "Search from this tile",
  like: "More like this",
  unlike: "Less like this",
  keep: "Keep for a collection",
};
const SHAPES = {
  show: "M3 12a9 9 0 1 0 18 0a9 9 0 1 0 -18 0M12 3v4M12 17v4M3 12h4M17 12h4",
  search: "M4 10.5a6.5 6.5 0 1 0 13 0a6.5 6.5 0 1 0 -13 0M15.5 15.5L21 21",
  like: "M12 5v14M5 12h14",
  unlike: "M5 12h14",
  keep: "M12 3.5l2.6 5.4 5.9.8-4.3 4.1 1.1 5.9-5.3-2.9-5.3 2.9 1.1-5.9L3.5 9.7l5.9-.8z",
};

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".hs-gallery");
  root.style.setProperty("--hs-card", `${data.width_px}px`);
  root.dataset.busy = "false";
  const tell = (action, card) => {
    if (action === "search" || action === "like" || action === "unlike") root.dataset.busy = "true";
    setTriggerValue("picked", { action, tile_key: card.tile_key });
  };
  const focused = mark(parentElement.activeElement ?? root.getRootNode().activeElement);
  root.replaceChildren(...data.cards.map((card) => drawn(card, data.actions, tell)));
  if (focused) [...root.querySelectorAll("button")].find((button) => mark(button) === focused)?.focus();
}

// What tells a button from the others, also after it was drawn anew.
function mark(button) {
  return button?.dataset?.tileKey ? `${button.dataset.action ?? ""} ${button.dataset.tileKey}` : null;
}

function drawn(card, actions, tell) {
  const box = element("div", "hs-card");
  box.setAttribute("role", "listitem");
  box.dataset.chosen = String(card.chosen);
  if (card.mark) box.dataset.mark = card.mark;
  const picture = element("button", "hs-picture");
  picture.type = "button";
  picture.title = card.hint || WORDS[actions[0]];
  picture.setAttribute("aria-label", `${WORDS[actions[0]]}: ${card.title}`);
  picture.dataset.tileKey = card.tile_key;
  if (card.image) {
    const image = element("img");
    image.alt = card.title;
    image.loading = "lazy";
    image.onerror = () => image.replaceWith(nothing());
    image.src = card.image;
    picture.append(image);
  } else picture.append(nothing());
  picture.onclick = () => tell(actions[0], card);
  const name = element("span", "hs-name", card.title);
  name.title = card.title;
  box.append(picture, name, ...card.lines.map((line) => {
    const told = element("span", "hs-line", line);
    told.title = line;
    return told;
  }));
  if (actions.length > 1) {
    const row = element("div", "hs-actions");
    for (const action of actions) row.append(button(action, card, tell));
    box.append(row);
  }
  return box;
}

function button(action, card, tell) {
  const made = element("button");
  made.type = "button";
  made.title = WORDS[action];
  made.dataset.action = action;
  made.dataset.tileKey = card.tile_key;
  made.setAttribute("aria-label", `${WORDS[action]}: ${card.title}`);
  if (action === "like" || action === "unlike") made.setAttribute("aria-pressed", String(card.mark === action));
  if (action === "keep") made.setAttribute("aria-pressed", String(card.kept));
  made.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${SHAPES[action]}"/></svg>`;
  made.onclick = () => tell(action, card);
  return made;
}

function nothing() {
  return element("span", "hs-none", "no picture");
}

function element(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}
