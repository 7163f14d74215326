// Small means to draw: text is only ever text, and what stays keeps its place and its focus.

const SVG = "http://www.w3.org/2000/svg";

// Names and reasons come from configuration, peers and FreeSWITCH: nothing that cannot be seen may
// turn, hide or forge what stands beside it.
export function clean(value) {
  return String(value ?? "").replace(/[\p{C}\p{Zl}\p{Zp}]/gu,
    (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

export function el(tag, attributes = {}, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return dressed(document.createElementNS(SVG, tag), attributes, children);
}

function dressed(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(clean(child)));
  }
  return node;
}

// Text of others, kept from turning the line that it stands in.
export function name(text) {
  return el("bdi", {}, text);
}

// Bring the children of `parent` into line with `items`. A child is drawn anew only when what it
// shows has changed, and its `summary` and openness outlive that: keyboard and reader stay put.
export function keep(parent, items, keyOf, draw) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const known = old.get(key);
    const shows = JSON.stringify(item);
    let node = known;
    old.delete(key);
    if (!known) {
      node = draw(item);
    } else if (known.dataset.shows !== shows) {
      const fresh = draw(item);
      if (known.tagName === fresh.tagName && known.tagName === "DETAILS") {
        known.dataset.tone = fresh.dataset.tone;
        known.firstElementChild.replaceChildren(...fresh.firstElementChild.childNodes);
        known.lastElementChild.replaceChildren(...fresh.lastElementChild.childNodes);
      } else {
        known.replaceWith(fresh);
        if (place === known) place = fresh;
        node = fresh;
      }
    }
    node.dataset.key = key;
    node.dataset.shows = shows;
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const gone of old.values()) gone.remove();
}
