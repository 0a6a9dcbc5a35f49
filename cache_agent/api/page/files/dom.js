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

const opened = new Set();

// The first entries, and a button that shows the others: hundreds of rows would push what is below out of reach.
export function first(entries, most, button, what) {
  const all = opened.has(button.id);
  show(button, entries.length > most);
  say(button, all ? `Show ${most} ${what} only` : `Show all ${entries.length} ${what}`);
  button.setAttribute("aria-expanded", String(all));
  return all ? entries : entries.slice(0, most);
}

// Has buttons of `first` show and hide the others; `redraw` draws the section of a button's data-of.
export function listenToMore(redraw) {
  for (const button of document.querySelectorAll("button[data-of]")) {
    button.addEventListener("click", () => {
      if (!opened.delete(button.id)) opened.add(button.id);
      redraw(button.dataset.of);
    });
  }
}

// Says a text now or, soon after another, the newest one later: who is told each change hears nothing else.
export function sayRarely(element, text, ms) {
  element.later = text;
  if (element.alarm || element.textContent === text) return;
  say(element, text);
  element.alarm = setTimeout(() => { element.alarm = 0; sayRarely(element, element.later, ms); }, ms);
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
