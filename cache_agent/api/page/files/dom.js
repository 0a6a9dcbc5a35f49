// Elements from values. Text is only ever set as text: names come from tenants and may be anything.

export const byId = (id) => document.getElementById(id);

// An element with attributes, and children that are elements or texts. Empty children are left out.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((each) => each !== undefined && each !== null && each !== ""));
  return element;
}

// A name given by somebody else: isolated, so that its direction can't reorder what stands beside it.
export const name = (text, tag = "span") => make(tag, { class: "name" }, String(text));

// Sets a text only where it has changed: a screen reader would say it again, and the browser lay it out again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

// Keeps one child for each entry [key, row], in order. `fill` gives a child's content; it runs only for rows that changed.
export function keep(parent, entries, tag, fill) {
  const known = new Map();
  for (const child of parent.children) known.set(child.rowKey, child);
  let place = parent.firstElementChild;
  for (const [key, row] of entries) {
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = document.createElement(tag);
      child.rowKey = key;
      // Said, because a narrow screen's style makes blocks of tables, which then are none for a screen reader.
      if (tag === "tr") child.setAttribute("role", "row");
    }
    if (child.row !== row) {
      child.row = row;
      const focus = child.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
      child.replaceChildren(...fill(row, child, key));
      if (focus) child.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of known.values()) child.remove();
}
