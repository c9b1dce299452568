// Elements out of data. Whatever comes from the service becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes that are null or false are left out; children that are null are, too. */
export function h(name, attributes = {}, ...children) {
  const element = name === "svg" || name === "path" ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The address if it leads to a web page; null for anything else, so that no `javascript:` becomes a link. */
export function webAddress(text) {
  try {
    const url = new URL(text, location.href);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

/** A link that opens beside this page; plain text where the address is none. */
export function outward(address, attributes, ...children) {
  const href = address ? webAddress(address) : null;
  if (!href) return h("span", attributes, ...children);
  return h("a", { ...attributes, href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

/** Makes the children of `parent` like `wanted`, changing only what differs: focus, scroll and open details stay. */
export function patch(parent, ...wanted) {
  const target = document.createElement("div");
  target.append(...wanted.flat(Infinity).filter(Boolean));
  patchChildren(parent, target);
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null;
}

function patchChildren(parent, target) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
  let here = parent.firstChild;
  for (const child of [...target.childNodes]) {
    const key = keyOf(child);
    const same = key ? keyed.get(key) : here && !keyOf(here) && isAlike(here, child) ? here : null;
    if (!same || !isAlike(same, child)) {
      parent.insertBefore(child, here);
      continue;
    }
    if (same === here) here = here.nextSibling;
    else if (!isFocusWithin(same)) parent.insertBefore(same, here);
    else {
      // Moving an element takes the focus from it: everything before it is moved behind instead.
      while (here && here !== same) {
        const next = here.nextSibling;
        parent.append(here);
        here = next;
      }
      here = same.nextSibling;
    }
    if (key) keyed.delete(key);
    patchNode(same, child);
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

function isFocusWithin(node) {
  return node.nodeType === Node.ELEMENT_NODE && node.contains(document.activeElement);
}

function isAlike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName;
}

function patchNode(node, wanted) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  if (node.hasAttribute("data-own")) return; // what a chart or the map has put in
  for (const { name } of [...node.attributes]) {
    const isKept = name === "open" || name === "data-missing"; // what a person, or a missing picture, has done
    if (!isKept && !wanted.hasAttribute(name)) node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (name === "style") node.style.cssText = wanted.style.cssText;
    else if (node.getAttribute(name) !== value) {
      node.setAttribute(name, value);
      if (name === "src") node.removeAttribute("data-missing");
    }
  }
  patchChildren(node, wanted);
}
