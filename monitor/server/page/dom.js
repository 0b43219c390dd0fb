// The only place where the page builds elements. Text goes in as text nodes: nothing here parses markup.

/**
 * Build an element: `h("button", {type: "button", onclick: act}, "Undo")`.
 * Properties starting with "on" become listeners, `true` an empty attribute; null and false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Find an element by id; a missing one is a mistake in the page itself. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element with id ${id}`);
  return element;
}

/** Set text only where it differs: an untouched node costs no layout and is not announced again. */
export function setText(element, text) {
  const string = String(text);
  if (element.textContent !== string) element.textContent = string;
}

/** Set an attribute only where it differs; null removes it. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** Draw a severity or state as a shape, so that colour is never the only sign. */
export function icon(name) {
  const paths = {
    critical: "M8 1.500 15.500 14.500H.5z",
    warning: "M8 .8 15.200 8 8 15.200.8 8z",
    info: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2z",
    control: "M2 3h12v2.500H2zm0 7.500h12V13H2zM4.500 1.500h3V7h-3zm4 7.500h3v5.500h-3z",
    starting: "M8 2a6 6 0 1 0 6 6h-2.500A3.500 3.500 0 1 1 8 4.500z",
    running: "M3.500 1.800 14 8 3.500 14.200z",
    paused: "M3 2h3.600v12H3zm6.400 0H13v12H9.400z",
    finished: "M6.300 13.500.9 8.100l2-2 3.400 3.400 6.800-6.900 2 2z",
    failed: "M3.600 1.600 8 6l4.400-4.400 2 2L10 8l4.400 4.400-2 2L8 10l-4.400 4.400-2-2L6 8 1.600 3.600z",
    vanished: "M3.600 1.600 8 6l4.400-4.400 2 2L10 8l4.400 4.400-2 2L8 10l-4.400 4.400-2-2L6 8 1.600 3.600z",
    interrupted: "M2.500 2.500h11v11h-11z",
    stale: "M7 1h2v8H7zm0 11h2v3H7z",
  };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", paths[name] ?? paths.info);
  svg.append(path);
  return svg;
}

const announcements = { timer: 0, waiting: [] };

/** Tell screen readers, politely and in one go: what piles up within half a second is read as one message. */
export function announce(message) {
  announcements.waiting.push(message);
  if (announcements.timer) return;
  announcements.timer = setTimeout(() => {
    const waiting = announcements.waiting.splice(0);
    const shown = waiting.slice(-3);
    const left = waiting.length - shown.length;
    setText(byId("announcer"), (left ? `${left} more messages. ` : "") + shown.join(". "));
    announcements.timer = 0;
  }, 500);
}
